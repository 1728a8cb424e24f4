"""Markdown that arrives in pieces: which blocks are finished, and how a block looks on a terminal."""

from __future__ import annotations

from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown
from rich.syntax import Syntax
from rich.theme import Theme

# Nothing that the model wrote may vanish: HTML, images and link definitions stay visible as text, and so do
# the backslashes of formulas and Windows paths.
_PARSER = (
    MarkdownIt("commonmark", {"html": False})
    .enable(["table", "strikethrough"])
    .disable(["reference", "escape", "image"])
)


# Colours that are readable on a light and on a dark background.
THEME = Theme(
    {"markdown.code": "bold cyan", "markdown.code_block": "none", "markdown.h1": "bold underline"},
)
_CODE_THEME = "ansi_dark"


class _Code(CodeBlock):
    """Code without a margin, so that it can be copied from the screen."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Syntax(str(self.text).rstrip(), self.lexer_name, theme=self.theme, word_wrap=True)


class _LeftHeading(Heading):
    LEVEL_ALIGN = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class Block(Markdown):
    """One or more Markdown blocks, with the answer's own line breaks and visible link addresses."""

    elements = Markdown.elements | {"fence": _Code, "code_block": _Code, "heading_open": _LeftHeading}

    def __init__(self, text: str) -> None:
        super().__init__("", code_theme=_CODE_THEME, hyperlinks=False)
        self.parsed = _keep_line_breaks(_PARSER.parse(text))


class BlockStream:
    """Splits a growing Markdown text into finished top-level blocks and an unfinished tail."""

    def __init__(self) -> None:
        self.tail = ""

    def feed(self, text: str) -> list[str]:
        """Add text; return the blocks that no later text can change, in order."""
        self.tail += text
        if "\n" not in text:
            return []
        # Only complete lines count: a partial line such as `-` may become a list, a rule or a heading.
        lines = self.tail[: self.tail.rindex("\n") + 1].splitlines(keepends=True)
        starts = [token.map[0] for token in _PARSER.parse("".join(lines)) if token.level == 0 and token.map]
        bounds = sorted(set(starts))
        blocks = ["".join(lines[a:b]) for a, b in pairwise(bounds)]
        if blocks:
            self.tail = self.tail[sum(map(len, lines[: bounds[-1]])) :]
        return blocks

    def flush(self) -> list[str]:
        """Return the last block, at the end of the answer."""
        tail, self.tail = self.tail, ""
        return [tail] if tail.strip() else []


def _keep_line_breaks(tokens: list[Token]) -> list[Token]:
    for token in tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return tokens
