"""The process that runs the readers, because their input may hang them, exhaust memory or crash C code.

It answers each line of stdin, a JSON object with `format`, `path` and the reader's `options`, with lines on
stdout: an array of text and section for each part, and a final object with `remarks` and, after a failure,
`failed` and `why`.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any, TextIO

from adamas_cli.documents.formats.limits import limit
from adamas_cli.documents.formats.recognize import Format
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark, summed

MEMORY_BYTES = 2 * 2**30
OCR_CPU_SECONDS = 86_400  # each page has its own time limit
CPU_SECONDS = 600  # for one file, in case the parent, which watches the time, is gone
PIECE = 2**18  # characters: at most 1 MiB
_RECURSION = 5000  # levels of nested elements; each takes several calls
# The only control characters of text; NUL and escape codes must not reach a model or a terminal.
_CLEANED: dict[int, str | None] = {
    code: None for code in [*range(0x20), 0x7F, 0xFFFE, 0xFFFF] if chr(code) not in "\t\n"
}
_CLEANED |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")  # lone surrogates, which JSON may contain


def main() -> None:
    """Serve stdin to its end."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries' output must not mix with answers
    sys.setrecursionlimit(_RECURSION)
    limit(resource.RLIMIT_AS, MEMORY_BYTES)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_CORE, 0)
    for line in sys.stdin:
        job = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + _patience(job["options"]))
        _serve(Format(job["format"]), job["path"], job["options"], answers)


def _serve(kind: Format, path: str, options: dict[str, Any], answers: TextIO) -> None:
    last: dict[str, object] = {}
    remarks: list[Remark] = []
    try:
        for part in read(kind, path, **options):
            if isinstance(part, Remark):
                remarks.append(part)
                continue
            answers.write(json.dumps(part, ensure_ascii=False) + "\n")
            answers.flush()
    except UnreadableError as error:
        last = {"failed": error.trouble, "why": error.why}
    except MemoryError:
        last = {"failed": Trouble.TOO_HUNGRY, "why": ""}
    except RecursionError:
        last = {"failed": Trouble.TOO_DEEP, "why": ""}
    except Exception as error:  # libraries raise anything on damaged files
        last = {"failed": Trouble.DAMAGED, "why": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps({**last, "remarks": list(map(astuple, summed(remarks)))}) + "\n")
    answers.flush()


def read(kind: Format, path: str, **options: Any) -> Iterator[Part | Remark]:
    """The parts of a file, each of at most `PIECE` printable characters, tabs or line ends, and remarks on
    it. options: the reader's options.
    """
    reader = importlib.import_module(f"adamas_cli.documents.formats.{kind}")
    for found in reader.read(path, **options):
        if isinstance(found, Remark):
            yield found
            continue
        text, section = found
        clean = text.translate(_CLEANED)
        for start in range(0, max(len(clean), 1), PIECE):
            yield Part(clean[start : start + PIECE], section if not start else None)


def _patience(options: dict[str, Any]) -> int:
    return OCR_CPU_SECONDS if options.get("ocr") else CPU_SECONDS


if __name__ == "__main__":
    main()
