"""The plan of a question: token counts, memory, and time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import OverContextError
from adamas_cli.forecast.tree import Branch
from adamas_cli.planning.decision import Decision

if TYPE_CHECKING:
    from adamas_cli.prompt.layout import DocumentTokens


@dataclass(frozen=True)
class Counted:
    """Token counts. around: the template before the documents and, with the question, after them. apart: see
    `DocumentSettings`.
    """

    documents: list[DocumentTokens]
    around: int
    answer: int
    context: int
    apart: bool = False

    @property
    def in_documents(self) -> int:
        """The tokens of all documents, including their wrappers."""
        return sum(document.tokens for document in self.documents)

    @property
    def prompt(self) -> int:
        """The tokens that the model reads."""
        return self.in_documents + self.around

    @property
    def total(self) -> int:
        """The tokens that the cache holds at the end."""
        return self.prompt + self.answer

    @property
    def positions(self) -> int:
        """The positions that must fit the context: documents that are read apart share them."""
        if not self.apart:
            return self.total
        longest = max((document.tokens for document in self.documents), default=0)
        return self.around + longest + self.answer

    @property
    def fits(self) -> bool:
        """Whether they fit."""
        return self.positions <= self.context

    @property
    def parts(self) -> int | None:
        """The number of parts that fit the context; None if none would fit, or if there are no parts."""
        if self.apart:
            return None
        room = self.context - self.around - self.answer
        return max(1, math.ceil(self.in_documents / room)) if room > 0 else None


@dataclass(frozen=True)
class Times:
    """Seconds. reading: tokens that are not kept. answer: the longest answer. source: of the timings."""

    reading: float
    answer: float
    tokens_per_s: float
    source: str


@dataclass(frozen=True)
class Plan:
    """All that `adamas plan` reports. available: bytes of the memory that the model would use. over_budget:
    the error if there are more tokens than `token_budget`.
    """

    model: str
    decision: Decision
    counted: Counted
    kept: int
    available: int
    times: Times | None
    over_budget: OverContextError | None

    def as_json(self, tree: Branch | None) -> dict[str, Any]:
        """The plan as JSON."""
        counted, times, decision = self.counted, self.times, self.decision
        attention = decision.attention
        shown: dict[str, Any] = {
            "model": self.model,
            "device": decision.device,
            "dtype": decision.dtype,
            "quantization": decision.quantization,
            "attention": attention.kind,
            "backend": attention.backend,
            "budget": attention.budget,
            "read": attention.read,
            "prefill_chunk": attention.chunk,
            "cache_dtype": decision.cache_dtype,
            "cache_dtype_that_fits": decision.smaller,
            "kv": decision.kv,
            "gpus": decision.gpus,
            "positions": decision.positions,
            "documents": [
                {"path": document.path, "tokens": document.tokens} for document in counted.documents
            ],
            "apart": counted.apart,
            "n_document_tokens": counted.in_documents,
            "n_prompt_tokens": counted.prompt,
            "n_answer_tokens": counted.answer,
            "n_ctx": counted.context,
            "fits": counted.fits,
            "parts": counted.parts,
            "kept_tokens": self.kept,
            "memory": {**decision.bytes.as_json(), "available_bytes": self.available},
            "time": times
            and {
                "prefill_s": round(times.reading, 3),
                "decode_s": round(times.answer, 3),
                "decode_tokens_per_s": round(times.tokens_per_s, 2),
                "source": times.source,
            },
        }
        return shown | ({} if tree is None else {"tree": tree.as_json()})
