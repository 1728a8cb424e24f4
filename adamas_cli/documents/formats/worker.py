"""The process that runs the readers: what it is given may hang them, eat memory or crash C code.

It answers each line of stdin, a JSON object with `format` and `path`, with lines on stdout: an array of text
and section for each part, an object with `note` for each note, and one at the end, with `failed` and `why`
where there is trouble. A line of stdin may have an `encoding`, which the user names.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

from adamas_cli.documents.formats.recognize import TEXTUAL, Format
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Note, Part

MEMORY_BYTES = 2 * 2**30
CPU_SECONDS = 600  # for one file, should the parent be gone that watches the time
PIECE = 2**18  # characters: at most 1 MiB
_RECURSION = 5000  # levels of nested elements; each takes several calls
# No control character is text but these; NUL and escape codes must not reach a model or a terminal.
_UNPRINTED = {code: None for code in [*range(0x20), 0x7F, 0xFFFE, 0xFFFF] if chr(code) not in "\t\n"}


def main() -> None:
    """Serve stdin to its end."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    sys.setrecursionlimit(_RECURSION)
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    for line in sys.stdin:
        job = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + CPU_SECONDS)
        _serve(Format(job["format"]), job["path"], job.get("encoding"), answers)


def _serve(kind: Format, path: str, encoding: str | None, answers: TextIO) -> None:
    last: dict[str, str] = {}
    try:
        for part in read(kind, path, encoding):
            line = part._asdict() if isinstance(part, Note) else part
            answers.write(json.dumps(line, ensure_ascii=False) + "\n")
            answers.flush()
    except UnreadableError as error:
        last = {"failed": error.trouble, "why": error.why}
    except MemoryError:
        last = {"failed": Trouble.TOO_HUNGRY, "why": ""}
    except RecursionError:
        last = {"failed": Trouble.TOO_DEEP, "why": ""}
    except Exception as error:  # libraries raise anything at all on damaged files
        last = {"failed": Trouble.DAMAGED, "why": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(last) + "\n")
    answers.flush()


def read(kind: Format, path: str, encoding: str | None = None) -> Iterator[Part | Note]:
    """The parts of a file, each of at most `PIECE` characters, which are printable, tabs or line ends, and
    notes on it. encoding: the codec that the user names, for formats that are text.
    """
    reader = importlib.import_module(f"adamas_cli.documents.formats.{kind}")
    for part in reader.read(path, encoding) if kind in TEXTUAL else reader.read(path):
        if isinstance(part, Note):
            yield part
            continue
        text, section = part
        clean = text.translate(_UNPRINTED)
        for start in range(0, max(len(clean), 1), PIECE):
            yield Part(clean[start : start + PIECE], section if not start else None)


def _limit(kind: int, value: int) -> None:
    with suppress(OSError, ValueError):  # not every system has each of them
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    main()
