"""What packed weights and compiled steps lose on a CPU, and how close sparse attention stays there.

    python docs/measure_weights.py MODEL TEXT [CONTEXT] [SCORED]

Reads the beginning of a text and feeds what follows, token by token. The reference is float32 throughout,
with the weights as in the model's file. The tables are in docs/accuracy.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from adamas_kernels.contract import SparseSettings
from torch import Tensor

from adamas_cli import models
from adamas_cli.cache.mode import Sparse
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.bench.table import markdown_head, markdown_row
from adamas_cli.lab.eval.divergence import diverge
from adamas_cli.models.packed import describe
from adamas_cli.planning.choice import budget_for
from adamas_cli.progress import Silent
from adamas_cli.prompt.tokens import Tokenizer

WAYS = {
    "float32, weights as in the file": ("float32", "none"),
    "float32, packed": ("float32", "packed"),
    "bfloat16, weights as in the file": ("bfloat16", "none"),
    "bfloat16, packed (the default)": ("auto", "auto"),
}
TITLES = ("way", "perplexity", "ratio", "KL", "top-1")
LONGEST_TOKEN = 40  # characters


def main(name: str, text: Path, context: int = 4096, scored: int = 256) -> None:
    """Print the table, then that of sparse attention against full attention in the default way."""
    reference: Tensor | None = None
    print(f"{name}, {text.name}, {context:,} tokens read, {scored} compared\n\n{markdown_head(TITLES)}")
    for way, (dtype, quantization) in WAYS.items():
        files = models.resolve(name, device="cpu", offline=True, progress=Silent())
        loaded = models.load(files, device="cpu", dtype=dtype, quantization=quantization, progress=Silent())
        tokenizer = Tokenizer.from_directory(files.directory)
        ids = tokenizer.encode(text.read_text("utf-8")[: LONGEST_TOKEN * (context + scored + 1)])
        fed, targets = ids[context : context + scored], ids[context + 1 : context + scored + 1]
        timeline = Timeline(loaded, AttentionSettings("adamas"), context=context + scored)
        list(timeline.read(ids[:context]))
        full = timeline.score(fed, sparse=False)
        reference = full if reference is None else reference
        row(way, reference, full, targets)
    print(f"\n{describe(loaded.model)}. Sparse attention against full attention, both in the default way:\n")
    print(markdown_head(TITLES))
    assert timeline.sparse is not None
    for budget in (64, 128, 256, budget_for(context)):
        timeline.use(Sparse(SparseSettings(budget=budget), timeline.sparse.backend))
        row(f"budget {budget}", full, timeline.score(fed, sparse=True), targets)


def row(name: str, expected: Tensor, found: Tensor, targets: np.ndarray) -> None:
    """Print one line."""
    compared = diverge(expected.float(), found.float(), torch.from_numpy(targets.astype(np.int64)))
    cells = [name, f"{compared.perplexity:.3f}", f"{compared.perplexity_ratio:.4f}"]
    print(markdown_row([*cells, f"{compared.kl.mean():.5f}", f"{compared.same.mean():.3f}"]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
