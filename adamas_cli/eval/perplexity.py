"""Teacher-forced comparison with full attention on real text: `adamas eval ppl`.

A text's first tokens are read with full attention, as `ask` reads a document. The tokens after them are fed
one after the other as they stand, once with full attention and once for each method and budget with sparse
attention, and the distributions of the next token are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from adamas_kernels.ops import SparseSettings

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.cache import SparseDecoding
from adamas_cli.engine.engine import Engine
from adamas_cli.eval.divergence import Divergence, diverge, interval
from adamas_cli.eval.methods import METHODS, Method
from adamas_cli.eval.study import StudyBackend, Worth
from adamas_cli.models import LoadedModel


@dataclass(frozen=True)
class Row:
    """One method at one budget and length. Divergences in nats; the intervals are 95 % bootstrap."""

    text: str
    context: int
    scored: int
    method: str
    budget: int
    kl: float
    kl_low: float
    kl_high: float
    top1: float
    top1_low: float
    top1_high: float
    perplexity: float
    perplexity_ratio: float
    mass_kept: float
    mass_of_best: float
    recall: float
    mass_kept_by_layer: list[float]
    recall_by_layer: list[float]


@dataclass(frozen=True)
class _Studied(AttentionSettings):
    """Attention settings whose sparse steps are given."""

    decoding: SparseDecoding | None = None

    def resolve(
        self, context: int, device: torch.device, announce: Callable[[str], None] | None = None
    ) -> tuple[SparseDecoding | None, str | None]:
        return self.decoding, None


def measure(
    loaded: LoadedModel,
    text: str,
    ids: np.ndarray,
    *,
    context: int,
    scored: int,
    methods: Sequence[Method],
    budgets: Sequence[int],
    dense_layers: int,
) -> Iterator[Row]:
    """Read `context` tokens of ids, int [at least context + scored + 1], and compare over the next ones."""
    decoding = SparseDecoding(SparseSettings(), StudyBackend(METHODS["dot"]))
    settings = _Studied("adamas", dense_layers=dense_layers, decoding=decoding)
    engine = Engine(loaded, settings, context=context + scored)
    for _ in engine.read(ids[:context]):
        pass
    fed = ids[context : context + scored]
    targets = torch.from_numpy(ids[context + 1 : context + scored + 1].astype(np.int64))
    full = engine.score(fed, sparse=False)
    yield _row(text, context, "full", 0, diverge(full, full, targets), [])
    for method in methods:
        for budget in budgets:
            backend = StudyBackend(method)
            decoding.backend, decoding.settings = backend, method.at(budget)
            engine.encode_again()
            found = diverge(full, engine.score(fed, sparse=True), targets)
            yield _row(text, context, method.name, budget, found, backend.worth)


def _row(text: str, context: int, method: str, budget: int, found: Divergence, worth: Sequence[Worth]) -> Row:
    kept = [layer.mass / layer.queries for layer in worth]
    best = [layer.best_mass / layer.queries for layer in worth]
    recall = [layer.recall / layer.queries for layer in worth]
    return Row(
        text,
        context,
        len(found.kl),
        method,
        budget,
        float(found.kl.mean()),
        *interval(found.kl),
        float(found.same.mean()),
        *interval(found.same),
        found.perplexity,
        found.perplexity_ratio,
        float(np.mean(kept)) if kept else 1.0,
        float(np.mean(best)) if best else 1.0,
        float(np.mean(recall)) if recall else 1.0,
        kept,
        recall,
    )
