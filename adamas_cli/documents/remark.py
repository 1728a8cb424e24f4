"""A reader's remarks on a document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Remark:
    """`count` things of a kind, such as 3 "pictures", that are missing from the text; or, if not `left_out`,
    a number worth knowing, such as that of the "pages read by OCR".
    """

    kind: str
    count: int = 1
    left_out: bool = True


def summed(remarks: Iterable[Remark]) -> list[Remark]:
    """One remark for each kind, in order of first appearance; none for counts of zero."""
    counts: Counter[tuple[str, bool]] = Counter()
    for remark in remarks:
        counts[remark.kind, remark.left_out] += remark.count
    return [Remark(kind, count, left_out) for (kind, left_out), count in counts.items() if count]


def told(remarks: Iterable[Remark]) -> str:
    """For example `pictures (3), running heads and page numbers (243)`."""
    return ", ".join(f"{remark.kind} ({remark.count:,})" for remark in remarks)
