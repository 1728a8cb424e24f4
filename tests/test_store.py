"""Documents kept on disk: the same answers with and without them; any damage is a miss."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from conftest import ARCHITECTURES, TINY_CONTEXT, tiny_architecture
from loaded import Loaded

from adamas_cli.cache.placement import Paged
from adamas_cli.engine import model as engine_model
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Prefill, Token
from adamas_cli.engine.model import Model
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.files import appearing, leftovers
from adamas_cli.models.resolve import ModelFiles
from adamas_cli.store import blocks, document
from adamas_cli.store.chain import Chain
from adamas_cli.store.document import StoredDocument
from adamas_cli.store.entries import Entry, entries, on_disk, prune, remove, save, stored_files, total_bytes
from adamas_cli.store.keys import block_tokens, first_link, model_facts
from adamas_cli.store.places import FORMAT
from adamas_cli.store.settings import LARGEST_SHARE, LARGEST_STORE, StoreSettings, default_limit
from adamas_cli.terminal.spelling import spelled

CHUNK = 64
BLOCK = 128  # tokens; real ones are long enough to take a megabyte
DOCUMENT = 420  # tokens: three whole blocks and part of one
QUESTION = np.arange(12, dtype=np.int32)
FULL = AttentionSettings("full")
SPARSE = AttentionSettings("adamas", SparseSettings(budget=48))
KEPT = StoreSettings()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def loaded(name: str = "llama", device: str = "cpu", **changes) -> Loaded:
    model = tiny_architecture(name).to(device)
    files = ModelFiles("tiny", Path(), changes.pop("fingerprint", "a" * 64))
    return Loaded(model, files, torch.device(device), torch.float32, **changes)


def facts(model: Loaded) -> dict[str, Any]:
    """The facts that determine the keys of its blocks."""
    return model_facts(
        model.model.config.get_text_config(),
        fingerprint=model.files.fingerprint,
        quantization=model.quantization,
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        block=BLOCK,
        kept="auto",
    )


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count).astype(np.int32)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate store for each test, with blocks so small that short documents have several."""
    monkeypatch.setenv("ADAMAS_DOC_CACHE", str(tmp_path / "store"))
    monkeypatch.setattr(document, "block_tokens", lambda chunk, token_bytes: BLOCK)
    return tmp_path / "store"


@pytest.fixture(params=[False, True], ids=["heads first", "tokens first"])
def order(request, monkeypatch):
    """Both memory orders of keys and values, whatever the device."""
    monkeypatch.setattr(engine_model, "placement_on", lambda device: Paged(tokens_first=request.param))


def document_of(model: Any, ids: np.ndarray, chunk: int, *rest: Any) -> StoredDocument:
    return StoredDocument(model, ids, chunk, Model.of(model).placement, *rest)


@dataclass
class Run:
    """The results of one process: what was reused, answered and reported."""

    reused: int
    answer: list[int]
    notes: list[str]


def ask(
    model: Loaded,
    ids: np.ndarray,
    attention: AttentionSettings = SPARSE,
    settings: StoreSettings | None = KEPT,
    chunk: int = CHUNK,
    interrupt_at: int | None = None,
) -> Run:
    """Read a document and answer a question with a new engine; settings None: without a store."""
    timeline = Timeline(model, attention, context=TINY_CONTEXT, prefill_chunk=chunk)
    notes: list[str] = []
    kept = None if settings is None else document_of(model, ids, chunk, settings, ["a.txt"], notes.append)
    reading = timeline.read(ids, kept)
    first = next(reading)
    assert isinstance(first, Prefill)
    for event in reading:
        if interrupt_at is not None and event.done >= interrupt_at:
            reading.close()
            assert kept is not None
            kept.finish()
            return Run(first.reused, [], notes)
    events = timeline.answer(QUESTION, Sampling(), 24, stop_ids=())
    answer = [event.id for event in events if isinstance(event, Token)]
    if kept is not None:
        kept.finish()
    return Run(first.reused, answer, notes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attention", [FULL, SPARSE], ids=["full", "sparse"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_answer_is_the_same_without_cold_and_warm(name, attention, device):
    model, ids = loaded(name, device), tokens(DOCUMENT)
    without, cold, warm, again = (
        ask(model, ids, attention, settings) for settings in (None, KEPT, KEPT, KEPT)
    )
    assert (cold.reused, warm.reused, again.reused) == (0, DOCUMENT, DOCUMENT)
    assert without.answer == cold.answer == warm.answer == again.answer
    assert not cold.notes + warm.notes


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_restored_cache_has_the_same_floats(name):
    model, ids = loaded(name), tokens(DOCUMENT)
    logits = []
    for _ in range(2):
        timeline = Timeline(model, SPARSE, context=600, prefill_chunk=CHUNK)
        kept = document_of(model, ids, CHUNK, StoreSettings(), ["a.txt"], pytest.fail)
        list(timeline.read(ids, kept))
        kept.finish()
        logits.append(timeline.score(QUESTION, sparse=True))
    assert torch.equal(*logits)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_longest_common_beginning_is_reused(name):
    model, ids = loaded(name), tokens(DOCUMENT)
    ask(model, ids)
    longer = np.concatenate([ids, tokens(200, seed=1)])
    for changed, reused in [
        (longer, DOCUMENT // BLOCK * BLOCK),
        (np.concatenate([ids[:300], tokens(60, seed=2)]), 2 * BLOCK),
        (np.concatenate([tokens(1, seed=3), ids]), 0),
        (longer, len(longer)),
        (ids, DOCUMENT),
    ]:
        run = ask(model, changed)
        assert run.reused == reused
        assert run.answer == ask(model, changed, settings=None).answer


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_interrupted_prefill_goes_on_from_its_last_whole_block(name):
    model, ids = loaded(name), tokens(DOCUMENT)
    assert ask(model, ids, interrupt_at=300).reused == 0
    (held,) = on_disk(document.documents_directory())
    assert (held.whole, held.tokens) == (2, 2 * BLOCK)
    resumed = ask(model, ids)
    assert resumed.reused == 2 * BLOCK
    assert resumed.answer == ask(model, ids, settings=None).answer


def test_full_and_sparse_attention_share_keys_and_values():
    model, ids = loaded(), tokens(DOCUMENT)
    ask(model, ids, FULL)
    for attention in (SPARSE, AttentionSettings("adamas", SparseSettings(budget=48), dense_layers=1)):
        run = ask(model, ids, attention)
        assert run.reused == DOCUMENT
        assert run.answer == ask(model, ids, attention, settings=None).answer


def test_nothing_is_reused_of_what_was_computed_otherwise():
    ids = tokens(DOCUMENT)
    ask(loaded(), ids)
    other = loaded()
    other.model.config.rope_parameters = other.model.config.rope_parameters | {"rope_theta": 5000.0}
    for model in (
        loaded(fingerprint="b" * 64),
        loaded(quantization="packed"),
        replace(loaded(), dtype=torch.bfloat16),
        other,
        loaded("qwen2"),
    ):
        assert Chain(first_link(facts(model)), ids, BLOCK).keys()[0] not in {
            file.stem for file in stored_files(document.documents_directory())
        }
    assert ask(loaded(), ids, chunk=CHUNK).reused == DOCUMENT


def test_names_do_not_matter_to_keys_but_the_last_ones_are_shown(root):
    model, ids = loaded(), tokens(DOCUMENT)
    for name in ("a.txt", "b.txt"):
        timeline = Timeline(model, SPARSE, context=600, prefill_chunk=CHUNK)
        kept = document_of(model, ids, CHUNK, StoreSettings(), [name], pytest.fail)
        reused = (
            next(timeline.read(ids, kept)).reused if name == "b.txt" else len(list(timeline.read(ids, kept)))
        )
        kept.finish()
    assert reused == DOCUMENT
    assert [entry.documents for entry in entries(root)] == [["b.txt"]]


def test_blocks_are_at_least_a_megabyte_and_whole_chunks():
    assert block_tokens(512, 46080) == 512
    assert block_tokens(64, 1024) == 1024
    assert block_tokens(100, 1024) == 1100


def test_the_safetensors_library_reads_blocks(root):
    from safetensors import safe_open

    ask(loaded(), tokens(DOCUMENT))
    for file in stored_files(root):
        with safe_open(file, framework="pt") as stored:
            assert stored.metadata()["key"] == file.stem
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                assert stored.get_tensor(name).numel()


def test_only_the_user_may_read(root):
    ask(loaded(), tokens(DOCUMENT))
    for path in [root, *root.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


# --- Damage.


def first_block(root: Path, ids: np.ndarray, index: int = 1) -> Path:
    key = Chain(first_link(facts(loaded())), ids, BLOCK).keys()[index]
    return next(file for file in stored_files(root) if file.stem == key)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 100)


def truncate_much(file: Path) -> None:
    os.truncate(file, 5)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")


def foreign(file: Path) -> None:
    file.write_bytes(b"%PDF-1.7 and so on" * 1000)


def another(file: Path) -> None:
    other = next(path for path in stored_files(file.parents[2]) if path != file)
    file.write_bytes(other.read_bytes())


def newer(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"format": "%d"' % FORMAT, b'"format": "%d"' % (FORMAT + 1), 1))


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "damage", [truncate, truncate_much, empty, longer, foreign, another, newer, folder, Path.unlink]
)
def test_damage_is_a_miss(damage, root):
    model, ids = loaded(), tokens(DOCUMENT)
    cold = ask(model, ids)
    damage(first_block(root, ids))
    run = ask(model, ids)
    assert run.reused == BLOCK
    assert run.answer == cold.answer
    assert len(run.notes) == (0 if damage is Path.unlink else 1), run.notes
    if damage is not folder:  # only the user should remove it
        again = ask(model, ids)
        assert (again.reused, again.answer, again.notes) == (DOCUMENT, cold.answer, [])


def held_in(block: bytes, at: int) -> str | None:
    """Which part of a layer the byte at `at` belongs to."""
    begin = 8 + int.from_bytes(block[:8], "little")
    for name, entry in json.loads(block[8:begin]).items():
        if name != "__metadata__" and entry["data_offsets"][0] <= at - begin < entry["data_offsets"][1]:
            return name.partition(".")[2]
    return None


def test_any_flipped_bit_is_a_miss(root):
    """Sixty flips in keys, values, states, codes and headers."""
    model, ids = loaded(), tokens(DOCUMENT)
    cold = ask(model, ids)
    chance = random.Random(1)
    files = sorted(stored_files(root))
    assert len(files) == 5  # four blocks, and codes
    missed = 0
    for number in range(60):
        file = chance.choice(files)
        content = file.read_bytes()
        at = chance.randrange(4096 if number % 4 == 0 else len(content))
        flipped = bytearray(content)
        flipped[at] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        run = ask(model, ids, settings=StoreSettings(read_only=True))
        # A header is padded with spaces, and sums in a block are only read if it is the last one.
        harmless = content[at : at + 1] == b" " or held_in(content, at) in ("value_sum", "power")
        assert harmless or run.notes, (file.name, at)
        assert run.answer == cold.answer
        missed += bool(run.notes)
        file.write_bytes(content)
    assert missed > 40
    assert ask(model, ids).reused == DOCUMENT


def test_damaged_codes_cost_nothing_else(root):
    model, ids = loaded(), tokens(DOCUMENT)
    cold = ask(model, ids)
    (codes,) = (file for file in stored_files(root) if "-" in file.stem)
    truncate(codes)
    run = ask(model, ids)
    assert (run.reused, run.answer, len(run.notes)) == (DOCUMENT, cold.answer, 1)
    assert ask(model, ids).notes == []


def test_damaged_manifests_cost_nothing_but_themselves(root):
    model, ids = loaded(), tokens(DOCUMENT)
    cold = ask(model, ids)
    (manifest,) = root.glob("entries/*.json")
    for content in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": 1}',
        b"\xff\xfe",
        b'{"format": 99, "blocks": []}',
    ):
        manifest.write_bytes(content)
        assert entries(root) == []
        run = ask(model, ids)
        assert (run.reused, run.answer, run.notes) == (DOCUMENT, cold.answer, [])
        assert len(entries(root)) == 1


def test_deleted_while_it_is_read(root, monkeypatch):
    model, ids = loaded(), tokens(DOCUMENT)
    cold = ask(model, ids)
    original = blocks.read_header

    def read_and_delete(descriptor):
        for file in stored_files(root):
            file.unlink()
        return original(descriptor)

    monkeypatch.setattr("adamas_cli.store.restoring.read_header", read_and_delete)
    run = ask(model, ids)
    assert run.reused == BLOCK  # open files stay readable
    assert run.answer == cold.answer


def test_a_full_disk_is_said_once_and_stops_nothing(root, monkeypatch):
    model, ids = loaded(), tokens(DOCUMENT)
    without = ask(model, ids, settings=None)
    written = []
    original = blocks.BlockWriter.write

    def write(self, name, pieces):
        written.append(name)
        if len(written) > 20:
            raise OSError(28, "No space left on device")
        original(self, name, pieces)

    monkeypatch.setattr(blocks.BlockWriter, "write", write)
    run = ask(model, ids)
    assert run.answer == without.answer
    assert run.notes == ["the document is not kept for later questions: No space left on device"]
    assert list(leftovers(root)) == []
    assert not list(root.rglob("*.part"))


@pytest.mark.parametrize("where", ["/proc/adamas", "a-file/store"])
def test_a_folder_that_cannot_be_written_stops_nothing(where, tmp_path, monkeypatch):
    (tmp_path / "a-file").write_text("no folder")
    monkeypatch.setenv("ADAMAS_DOC_CACHE", str(tmp_path / where))
    model, ids = loaded(), tokens(DOCUMENT)
    run = ask(model, ids)
    assert run.answer == ask(model, ids, settings=None).answer
    assert len(run.notes) == 1
    assert "not kept" in run.notes[0]


def test_read_only_uses_and_never_writes(root):
    model, ids = loaded(), tokens(DOCUMENT)
    ask(model, ids, settings=StoreSettings(read_only=True))
    assert not root.exists()
    cold = ask(model, ids)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    run = ask(model, ids, settings=StoreSettings(read_only=True))
    assert (run.reused, run.answer) == (DOCUMENT, cold.answer)
    ask(model, tokens(300, seed=9), settings=StoreSettings(read_only=True))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before


def test_two_writers_of_one_document(root):
    model, ids = loaded(), tokens(DOCUMENT)
    without = ask(model, ids, settings=None)
    engines = [Timeline(model, SPARSE, context=600, prefill_chunk=CHUNK) for _ in range(2)]
    kept = [document_of(model, ids, CHUNK, StoreSettings(), ["a"], pytest.fail) for _ in engines]
    readings = [timeline.read(ids, one) for timeline, one in zip(engines, kept, strict=True)]
    # One after another: a model attends through one cache at a time. Both write in threads of their own.
    for reading in readings:
        list(reading)
    writers = [threading.Thread(target=one.finish) for one in kept]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert all(blocks.verify(file, file.stem) is None for file in stored_files(root))
    run = ask(model, ids)
    assert (run.reused, run.answer) == (DOCUMENT, without.answer)


def test_killed_at_any_point_nothing_wrong_is_ever_read(root):
    """Processes that write blocks are killed at random; whatever they leave is right or a miss."""
    parts = [np.random.default_rng(index).integers(0, 256, 60_000, np.uint8) for index in range(8)]
    shapes = {str(index): ("I8", (len(part),)) for index, part in enumerate(parts)}
    keys = [f"{index:040x}" for index in range(12)]
    chance = random.Random(2)
    began = time.monotonic()
    seen = unfinished = 0
    for number in range(300):
        child = os.fork()
        if child == 0:
            try:
                for key in keys:
                    with appearing(document.block_file(root, key)) as stream:
                        writer = blocks.BlockWriter(stream, key, 0, 1, shapes)
                        for name, part in zip(shapes, parts, strict=True):
                            writer.write(name, [part])
                        writer.seal()
            finally:
                os._exit(0)
        time.sleep(chance.random() * 0.012)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        files = list(stored_files(root))
        assert [problem for file in files if (problem := blocks.verify(file, file.stem))] == []
        seen += len(files)
        unfinished += len(list(leftovers(root)))
        if number % 10 == 9:
            prune(root, 0)
            assert list(leftovers(root)) == []
            assert list(stored_files(root)) == []
    assert seen > 300
    assert unfinished > 30, "the kills should have hit writing"
    assert time.monotonic() - began < 120


def test_parts_that_are_being_written_are_left_alone(root):
    with appearing(root / "blocks" / "ab" / "x.safetensors") as stream:
        stream.write(b"something")
        assert list(leftovers(root)) == []
    assert list(leftovers(root)) == []


def test_a_part_that_is_removed_before_it_is_locked_is_made_again(root, monkeypatch):
    """Two ranks that begin to keep a document at once remove leftovers while the other opens its file."""
    lock, removed = fcntl.flock, []

    def first_removed(stream, kind):
        monkeypatch.undo()
        for part in leftovers(root):
            part.unlink()
            removed.append(part)
        lock(stream, kind)

    monkeypatch.setattr(fcntl, "flock", first_removed)
    file = root / "entries" / "x.json"
    with appearing(file) as stream:
        stream.write(b"something")
    assert len(removed) == 1
    assert file.read_bytes() == b"something"
    assert list(file.parent.iterdir()) == [file]


def test_leftovers_stay_locked_while_they_are_removed(root):
    (root / "entries").mkdir(parents=True)
    (root / "entries" / ".x.json.0.part").touch()
    for part in leftovers(root):
        with part.open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()
    assert list(leftovers(root)) == []


# --- Room.


def test_the_least_recently_used_goes_first(root):
    model = loaded()
    documents = [tokens(DOCUMENT, seed) for seed in range(3)]
    for age, ids in enumerate(documents):
        ask(model, ids)
        newest = entries(root)[0]
        os.utime(root / "entries" / f"{newest.id}.json", (1000 + age, 1000 + age))
    ask(model, documents[0])  # used again
    each = total_bytes(root) // 3
    removed, freed = prune(root, 2 * each + 100)
    assert [entry.used for entry in removed] == [1001]
    assert freed >= each - 100
    assert [ask(model, ids, settings=StoreSettings(read_only=True)).reused for ids in documents] == [
        DOCUMENT, 0, DOCUMENT,
    ]  # fmt: skip


def test_blocks_that_another_document_shares_stay(root):
    model, ids = loaded(), tokens(DOCUMENT)
    ask(model, ids)
    (first,) = entries(root)
    longer = np.concatenate([ids, tokens(200, seed=1)])
    ask(model, longer)
    remove(root, [first.id])
    assert ask(model, longer, settings=StoreSettings(read_only=True)).reused == len(longer)


def test_what_no_document_names_is_removed(root):
    ask(loaded(), tokens(DOCUMENT))
    (manifest,) = root.glob("entries/*.json")
    manifest.unlink()
    removed, freed = prune(root, 1 << 40)
    assert removed == []
    assert freed > 0
    assert list(stored_files(root)) == []


def test_a_document_larger_than_the_store_is_not_kept_and_that_is_said(root):
    run = ask(loaded(), tokens(DOCUMENT), settings=StoreSettings(limit=1000))
    assert "--doc-cache-size" in spelled(run.notes[0])
    assert total_bytes(root) == 0


def test_reading_makes_room_for_itself(root):
    model = loaded()
    ask(model, tokens(DOCUMENT))
    size = total_bytes(root)
    ask(model, tokens(DOCUMENT, seed=1), settings=StoreSettings(limit=int(1.5 * size)))
    assert len(entries(root)) == 1
    assert ask(model, tokens(DOCUMENT, seed=1)).reused == DOCUMENT


def test_the_default_limit_is_a_share_of_the_free_disk(tmp_path, monkeypatch):
    usage = type("usage", (), {})
    for free, held, limit in [(10**15, 0, LARGEST_STORE), (10**9, 10**9, int(2e9 * LARGEST_SHARE))]:
        usage.free = free
        monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
        assert default_limit(tmp_path / "not" / "there", held) == limit


def test_manifests_of_other_versions_are_left_alone(root):
    entry = Entry("m", "float32", "cpu", ["a"], 1, 1, ["c" * 40])
    save(root, entry)
    (manifest,) = root.glob("entries/*.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": FORMAT + 1}))
    assert entries(root) == []
    assert manifest.exists()


# --- Compression.


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compressed_documents_answer_alike_cold_and_warm(name, root):
    model, ids = loaded(name), tokens(DOCUMENT)
    plain = ask(model, ids)
    whole = total_bytes(root)
    small = StoreSettings(dtype="int8")
    cold, warm = (ask(model, ids, settings=small) for _ in range(2))
    assert (plain.reused, cold.reused, warm.reused) == (0, 0, DOCUMENT)
    assert cold.answer == warm.answer
    if name != "gemma3":  # its windows stay as they are
        assert total_bytes(root) - whole < 0.45 * whole  # of float32


def test_compression_is_within_half_a_step():
    from adamas_cli.store.compression import LARGEST, compress, decompress

    x = torch.randn(2, 150, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 16)
    for keys in (True, False):
        small = compress(x, keys=keys)
        assert small.numbers.dtype == torch.int8
        step = x.abs().amax(2, keepdim=True) / LARGEST
        if keys:
            groups = [x[:, i : i + 64].abs().amax(1, keepdim=True).expand(-1, 64, -1) for i in (0, 64, 128)]
            step = torch.cat(groups, 1)[:, :150] / LARGEST
        assert ((decompress(small, torch.float32) - x).abs() <= 0.501 * step).all()


@pytest.mark.parametrize("device", DEVICES)
def test_what_comes_into_the_store_after_the_document_was_opened_is_read_whole(device):
    """Nothing is prepared if the store was still empty when the document was opened."""
    model, ids = loaded(device=device), tokens(DOCUMENT)
    early = document_of(model, ids, CHUNK, KEPT, ["a.txt"], pytest.fail)
    cold = ask(model, ids)
    timeline = Timeline(model, SPARSE, context=TINY_CONTEXT, prefill_chunk=CHUNK)
    reading = list(timeline.read(ids, early))
    assert reading[0].reused == DOCUMENT
    again = [event.id for event in timeline.answer(QUESTION, Sampling(), 24, ()) if isinstance(event, Token)]
    assert again == cold.answer
