"""What keeping documents costs and gains: time to the first token cold and warm, bytes, disk speed.

    python docs/measure_documents.py [--model NAME | --shape llama-3.1-8b] [--len 2048,7168] [--rounds 3]

Each round reads the same random tokens three times, each time with a new engine: without a store, with an
empty one, and with the filled one. The time to the first token runs from before the lookup in the store to
the first token of an answer to 20 tokens. Restoring is compared with reading the same files from the page
cache, one after another in pieces of 8 MiB, into as much memory, untouched before in both cases (on a GPU:
into pinned host memory, while restoring continues to the device). Prints one Markdown row per length.
With --text: how far next-token distributions move when the document is kept in int8.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.bench.shapes import load_shape
from adamas_cli.models import LoadedModel, load, resolve
from adamas_cli.models.device import choose_device, usual_products
from adamas_cli.progress import Silent
from adamas_cli.prompt.tokens import Tokenizer
from adamas_cli.store.document import StoredDocument
from adamas_cli.store.entries import entries, remove, stored_files, total_bytes
from adamas_cli.store.places import documents_directory
from adamas_cli.store.settings import StoreSettings

QUESTION = 20  # tokens
PIECE = 8 << 20
LARGE = 1 << 50


def in_store(
    timeline: Timeline, loaded: LoadedModel, ids: np.ndarray, settings: StoreSettings
) -> StoredDocument:
    """The tokens as a document that the store has or will have."""
    placement = timeline.cache.placement
    return StoredDocument(loaded, ids, timeline.chunk, placement, settings, ["measured"], print)


def first_token(
    loaded: LoadedModel, ids: np.ndarray, *, stored: bool, dtype: str = "auto"
) -> tuple[float, float, float]:
    """Seconds to the first token, for the document alone, and from the first token until all is on disk."""
    timeline = Timeline(loaded, AttentionSettings(budget_by_context=True), context=len(ids) + QUESTION + 8)
    document = None
    if stored:
        settings = StoreSettings(limit=LARGE, dtype=dtype)
        document = StoredDocument(
            loaded, ids, timeline.chunk, timeline.cache.placement, settings, ["measured"], print
        )
    start = time.perf_counter()
    list(timeline.read(ids, document))
    read = time.perf_counter()
    answering = timeline.answer(ids[:QUESTION], Sampling(), 2, stop_ids=())
    next(event for event in answering if type(event).__name__ == "Token")
    first = time.perf_counter()
    answering.close()
    if document is not None:
        document.finish()
    return first - start, read - start, time.perf_counter() - first


def restore_rate(loaded: LoadedModel, ids: np.ndarray) -> float:
    """Bytes/s of restoring the keys and values of all tokens into an empty cache."""
    timeline = Timeline(loaded, AttentionSettings("full"), context=len(ids) + 8)
    document = StoredDocument(
        loaded, ids, timeline.chunk, timeline.cache.placement, StoreSettings(True), ["measured"], print
    )
    size = sum(file.stat().st_size for file in stored_files(documents_directory()) if "-" not in file.stem)
    start = time.perf_counter()
    assert document.restore(timeline.cache) == len(ids)
    return size / (time.perf_counter() - start)


def plain_rate(pinned: bool) -> float:
    """Bytes/s of reading the same files into memory, one after another."""
    files = [file for file in stored_files(documents_directory()) if "-" not in file.stem]
    total = sum(file.stat().st_size for file in files)
    memory = torch.empty(total, dtype=torch.uint8, pin_memory=pinned).numpy()
    at = 0
    start = time.perf_counter()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        offset = 0
        while got := os.preadv(descriptor, [memory[at : at + PIECE]], offset):
            offset, at = offset + got, at + got
        os.close(descriptor)
    assert at == total
    return total / (time.perf_counter() - start)


def clear() -> None:
    """Forget every document."""
    root = documents_directory()
    if root.is_dir():
        remove(root, [entry.id for entry in entries(root)])


def measure(loaded: LoadedModel, count: int, rounds: int, dtype: str) -> str:
    """One row."""
    vocabulary = loaded.model.config.get_text_config().vocab_size
    ids = np.random.default_rng(0).integers(0, min(vocabulary, 30_000), count).astype(np.int32)
    rows = []
    for _ in range(rounds):
        clear()
        without = first_token(loaded, ids, stored=False)
        cold = first_token(loaded, ids, stored=True, dtype=dtype)
        warm = first_token(loaded, ids, stored=True, dtype=dtype)
        size = total_bytes(documents_directory())
        restore = restore_rate(loaded, ids) if dtype == "auto" else float("nan")
        plain = plain_rate(loaded.device.type == "cuda")
        rows.append(
            (
                without[0],
                cold[0],
                warm[0],
                cold[1] / without[1],
                cold[2],
                size,
                restore,
                plain,
                warm[0] / cold[0],
            )
        )
    without_s, cold_s, warm_s, overhead, rest, size, restore, plain, ratio = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    share = statistics.median(row[6] / row[7] for row in rows)
    return (
        f"| {count:,} | {without_s:.2f} | {cold_s:.2f} | {warm_s:.3f} | {ratio:.1%} | {overhead - 1:+.1%} "
        f"| {rest:.2f} | {size / count / 1e3:.1f} | {restore / 1e9:.1f} | {plain / 1e9:.1f} | {share:.0%} |"
    )


def divergence(loaded: LoadedModel, ids: np.ndarray, scored: int) -> str:
    """One row: the effect of `--doc-cache-dtype int8` on the next tokens of a text."""
    logits = {}
    for dtype in ("auto", "int8"):
        timeline = Timeline(loaded, AttentionSettings("full"), context=len(ids) + 8)
        settings = StoreSettings(limit=LARGE, dtype=dtype)
        document = StoredDocument(
            loaded, ids[:-scored], timeline.chunk, timeline.cache.placement, settings, ["measured"], print
        )
        list(timeline.read(ids[:-scored], document))
        document.finish()
        logits[dtype] = timeline.score(ids[-scored:], sparse=False)[:-1].float().log_softmax(-1).cpu()
    wanted = torch.from_numpy(ids[-scored + 1 :].astype(np.int64)).unsqueeze(1)
    plain, small = (-logits[dtype].gather(1, wanted).mean() for dtype in ("auto", "int8"))
    kl = (logits["auto"].exp() * (logits["auto"] - logits["int8"])).sum(-1).mean()
    top = (logits["auto"].argmax(-1) == logits["int8"].argmax(-1)).float().mean()
    ratio = (small - plain).exp()
    before = f"| {len(ids) - scored:,} | {plain.exp():.3f} | {small.exp():.3f}"
    return f"{before} | {ratio:.4f} | {kl:.5f} | {top:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None)
    parser.add_argument("--shape", default=None)
    parser.add_argument("--len", default="2048,7168,30000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--doc-cache-dtype", default="auto")
    parser.add_argument("--folder", type=Path, default=None, help="where the store is put for the while")
    parser.add_argument("--text", type=Path, default=None, help="measure what int8 does to this text instead")
    parser.add_argument("--scored", type=int, default=512)
    options = parser.parse_args()
    lengths = [int(length) for length in options.len.split(",")]
    if options.shape:
        device = choose_device("auto")
        products = usual_products("auto", "auto", device, print)
        loaded = load_shape(
            options.shape,
            max(lengths) + 64,
            dtype=getattr(torch, products.dtype),
            device=device,
            in_bytes=products.in_bytes if device.type == "cpu" else None,
            progress=Silent(),
        )
    else:
        loaded = load(resolve(options.model, offline=False, progress=Silent()), progress=Silent())
    print(f"{loaded.files.name}, {loaded.device}, {loaded.dtype}, torch {torch.__version__}")
    if options.text is not None:
        tokenizer = Tokenizer.from_directory(loaded.files.directory)
        ids = tokenizer.encode(options.text.read_text("utf-8"))
        print("| context | perplexity | with int8 | ratio | KL, nats | top-1 |")
        print("|" + "---:|" * 6)
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            os.environ["ADAMAS_DOC_CACHE"] = folder
            for count in lengths:
                print(divergence(loaded, ids[: count + options.scored], options.scored), flush=True)
        return
    print(
        "| tokens | first token without, s | cold, s | warm, s | warm/cold | reading longer by "
        "| written after, s | kB a token | restored, GB/s | plain read, GB/s | share |"
    )
    print("|" + "---:|" * 11)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.environ["ADAMAS_DOC_CACHE"] = folder
        first_token(loaded, np.arange(4096, dtype=np.int32) % 1000, stored=True)  # warm up
        for count in lengths:
            print(measure(loaded, count, options.rounds, options.doc_cache_dtype), flush=True)


if __name__ == "__main__":
    main()
