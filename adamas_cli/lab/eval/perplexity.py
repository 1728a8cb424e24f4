"""Teacher-forced comparison with full attention on real text: `adamas eval ppl`.

A text's first tokens are read as `ask` reads a document, densely or sparsely. The tokens after them are fed
one by one, once with full attention and once for each method and budget with sparse attention. The
distributions of the next token are compared with those of full attention after dense reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from adamas_cli.lab.eval.columns import Column, decimals, unless_zero
from adamas_cli.lab.eval.divergence import Divergence, diverge, interval
from adamas_cli.lab.eval.ledger import Ledger, Record
from adamas_cli.lab.eval.methods import METHODS
from adamas_cli.lab.eval.reading import FULL, Reading, Way, by_reading
from adamas_cli.lab.eval.study import StudyBackend, Worth
from adamas_cli.lab.eval.workload import Workload
from adamas_cli.models import LoadedModel

COLUMNS = (
    Column("text", "text"),
    Column("context", "context", decimals(0)),
    Column("method", "method"),
    Column("budget", "budget", unless_zero),
    Column("attended", "tokens", decimals(0)),
    Column("KL, nats (95 %)", "kl", decimals(4), interval=True),
    Column("top-1", "top1", decimals(3)),
    Column("ppl", "perplexity", decimals(2)),
    Column("ppl ratio", "perplexity_ratio", decimals(3)),
    Column("mass kept", "mass_kept", decimals(3)),
    Column("recall", "recall", decimals(3)),
)
BLOCKS = Column("blocks", "blocks_computed", decimals(3))


@dataclass(frozen=True)
class Row:
    """One method at one budget and length. Divergences in nats; the intervals are 95 % bootstrap.

    tokens: average number of tokens attended to, over the heads and positions of all sparse layers.
    blocks_computed: the share of blocks computed in reading; None for dense reading.
    """

    text: str
    context: int
    scored: int
    method: str
    budget: int
    tokens: float
    kl: float
    kl_low: float
    kl_high: float
    top1: float
    top1_low: float
    top1_high: float
    perplexity: float
    perplexity_low: float
    perplexity_high: float
    perplexity_ratio: float
    perplexity_ratio_low: float
    perplexity_ratio_high: float
    mass_kept: float
    mass_kept_low: float
    mass_kept_high: float
    mass_of_best: float
    recall: float
    recall_low: float
    recall_high: float
    mass_kept_by_layer: list[float]
    recall_by_layer: list[float]
    blocks_computed: float | None


@dataclass(frozen=True)
class Passage:
    """The beginning of a text, int [at least context + scored + 1]. context: tokens to read; scored: the
    tokens after them, over which distributions are compared.
    """

    name: str
    sha256: str
    ids: np.ndarray
    context: int
    scored: int


@dataclass(frozen=True)
class Perplexity:
    """One run. settings: fields common to all of its rows; ways: full attention first."""

    passages: Sequence[Passage]
    ways: Sequence[Way]
    settings: Mapping[str, Any]
    dense_layers: int
    seed: int
    ledger: Ledger

    def plan(self, workload: Workload) -> None:
        """Count the remaining work."""
        for passage in self.passages:
            missing = self._missing(passage)
            needed = by_reading(dict.fromkeys([self.ways[0], *missing] if missing else []))
            for read, ways in needed.items():
                workload.plan_reading(passage.context, read)
                for way in ways:
                    workload.plan_steps(way.method, passage.scored, passage.context)

    def measure(self, loaded: LoadedModel | None, workload: Workload) -> Iterator[Record]:
        """The rows, from the ledger or measured now; loaded may be None if all are in the ledger."""
        for passage in self.passages:
            fresh: Iterator[Row] = iter(())
            missing = self._missing(passage)
            if missing:
                assert loaded is not None
                fresh = measure(
                    loaded,
                    passage,
                    missing,
                    dense_layers=self.dense_layers,
                    seed=self.seed,
                    workload=workload,
                )
            for way in self.ways:
                record = self.ledger.find(self._identity(passage, way))
                if record is None:
                    row = asdict(next(fresh))
                    record = self._identity(passage, way) | row
                    self.ledger.add(record)
                yield record

    def _missing(self, passage: Passage) -> list[Way]:
        return [way for way in self.ways if self.ledger.find(self._identity(passage, way)) is None]

    def _identity(self, passage: Passage, way: Way) -> Record:
        """The fields that identify a row."""
        return {
            "record": "row",
            **self.settings,
            "seed": self.seed,
            "text": passage.name,
            "text_sha256": passage.sha256,
            "context": passage.context,
            "scored": passage.scored,
            **way.identity,
            "backend": StudyBackend.name if way.budget else "dense",
        }


def measure(
    loaded: LoadedModel,
    passage: Passage,
    ways: Sequence[Way],
    *,
    dense_layers: int,
    seed: int = 0,
    workload: Workload | None = None,
) -> Iterator[Row]:
    """Read a passage, anew for each reading, and compare its next tokens with those of full attention after
    dense reading. ways: grouped by reading.
    """
    work = workload or Workload()
    context, scored, ids = passage.context, passage.scored, passage.ids
    fed = ids[context : context + scored]
    targets = torch.from_numpy(ids[context + 1 : context + scored + 1].astype(np.int64))
    reference = Way(FULL, 0)
    for read, same in by_reading([reference, *ways]).items():
        reading = Reading(loaded, context=context + scored, dense_layers=dense_layers, how=read)
        work.read(context, reading.read(ids[:context]), read)
        for way in dict.fromkeys(same):
            backend = None if way.method == FULL else StudyBackend(METHODS[way.method])
            if backend is not None:
                reading.use(backend.method, way.budget, backend)
            with work.steps(way.method, scored, context):
                logits = reading.score(fed, sparse=backend is not None)
            if way == reference:
                full = logits
            if way in ways:
                worth = [] if backend is None else backend.worth
                yield _row(passage, way, diverge(full, logits, targets), worth, reading.computed, seed)
        del reading  # there is never room for two caches


def _row(
    passage: Passage,
    way: Way,
    found: Divergence,
    worth: Sequence[Worth],
    computed: float | None,
    seed: int,
) -> Row:
    # By layer and position; full attention keeps everything.
    nothing_lost = np.ones((0 if worth else 1, len(found.kl)))
    kept = np.array([*nothing_lost, *(layer.mass for layer in worth)])
    best = np.array([*nothing_lost, *(layer.best_mass for layer in worth)])
    recall = np.array([*nothing_lost, *(layer.recall for layer in worth)])
    return Row(
        passage.name,
        passage.context,
        len(found.kl),
        way.method,
        way.budget,
        float(np.mean([layer.tokens for layer in worth])) if worth else float(passage.context),
        float(found.kl.mean()),
        *interval(found.kl, seed),
        float(found.same.mean()),
        *interval(found.same, seed),
        found.perplexity,
        *_exponentials(interval(found.loss, seed)),
        found.perplexity_ratio,
        *_exponentials(interval(found.loss - found.full_loss, seed)),
        float(kept.mean()),
        *interval(kept.mean(0), seed),
        float(best.mean()),
        float(recall.mean()),
        *interval(recall.mean(0), seed),
        kept.mean(1).tolist() if worth else [],
        recall.mean(1).tolist() if worth else [],
        computed,
    )


def _exponentials(ends: tuple[float, float]) -> tuple[float, float]:
    return float(np.exp(ends[0])), float(np.exp(ends[1]))
