"""What a reader says of a document beside its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Remark:
    """`count` things of a kind, such as 3 "pictures", that are not in the text; or, where they are not
    `left_out`, a number that is worth knowing, such as that of the "pages read by OCR".
    """

    kind: str
    count: int = 1
    left_out: bool = True


def summed(remarks: Iterable[Remark]) -> list[Remark]:
    """One remark for each kind, in the order in which kinds came first; none of nothing."""
    counts: Counter[tuple[str, bool]] = Counter()
    for remark in remarks:
        counts[remark.kind, remark.left_out] += remark.count
    return [Remark(kind, count, left_out) for (kind, left_out), count in counts.items() if count]


def told(remarks: Iterable[Remark]) -> str:
    """Such as `pictures (3), running heads and page numbers (243)`."""
    return ", ".join(f"{remark.kind} ({remark.count:,})" for remark in remarks)
