"""The questions for each part, for each merge and for the final answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Style = Literal["brief", "detailed", "bullets"]

_STYLES: dict[Style, str] = {
    "brief": "Write one short paragraph.",
    "detailed": "Write a detailed summary of several paragraphs.",
    "bullets": "Write a list of bullet points, one point on each line.",
}
_NOTHING = re.compile(
    r"\W*(?:NOTHING\b|(?i:nothing)\W*$"
    # phrasings of small models
    r"|(?i:the (?:text|document|passage)s? (?:above )?do(?:es)? not "
    r"(?:tell|say|mention|state|provide|contain)\b))"
)


@dataclass(frozen=True)
class Job:
    """Templates by name, and the texts for their `$question`.

    questions: for every part and the intermediate merges; finals: for the last merge; equally many.
    """

    whole: str  # template if everything fits
    part: str
    merge: str
    questions: tuple[str, ...]
    finals: tuple[str, ...]
    may_know_nothing: bool = False  # a part may reply NOTHING
    folder: Callable[[str], str] = lambda _: ""  # the group that a path belongs to

    def knows(self, answer: str) -> bool:
        """Whether the answer of a part holds information."""
        if not answer.strip():
            return False
        return not (self.may_know_nothing and _NOTHING.match(answer))


def asking(questions: list[str]) -> Job:
    """Questions, answered from the parts that contain something about them."""
    asked = tuple(questions)
    return Job("ask", "ask-part", "ask-merge", asked, asked, may_know_nothing=True)


def summarizing(
    style: Style, focus: str | None, max_words: int | None, folder: Callable[[str], str] | None
) -> Job:
    """A summary; of a repository if `folder` groups its paths."""
    about = [f"Pay attention above all to this: {focus}"] if focus else []
    words = [f"Use at most {max_words} words."] if max_words else []
    part, final = " ".join(about), " ".join([_STYLES[style], *about, *words])
    if folder is None:
        return Job("summarize", "text-part", "text-merge", (part,), (final,))
    names = "summarize-repository", "repository-part", "repository-merge"
    return Job(*names, (part,), (final,), folder=folder)
