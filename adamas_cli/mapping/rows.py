"""Rows of the table: a question about a document, its answer or the reason why there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from adamas_cli.documents.apart import Source
from adamas_cli.session.answer import Answer

TRUNCATED = "the answer was cut at `max_tokens` and is not complete JSON: raise it"
LARGEST = 2**63  # integers of a column are smaller
_RENAMED = "answer_"  # before a field of a schema that is called as another column


@dataclass(frozen=True)
class Row:
    """version: of the document, see `Source`. fields: the answer's JSON, if it has a schema. tokens: of the
    whole prompt; reused: those that were not read for this answer; left_out: those that did not fit and were
    dropped. finish: `stop` or `length`. error: why there is no answer; empty if there is one.
    """

    document: str
    version: str
    question: str
    answer: str = ""
    fields: Mapping[str, Any] | None = None
    tokens: int = 0
    answer_tokens: int = 0
    reused: int = 0
    left_out: int = 0
    seconds: float = 0.0
    finish: str = ""
    error: str = ""


class Column(NamedTuple):
    """A column of the table, and its type: `string`, `integer`, `number`, `boolean`, or `json` for others."""

    name: str
    type: str


_BEFORE = (Column("document", "string"), Column("question", "string"))
_ANSWER = (Column("answer", "string"),)
_AFTER = (
    Column("tokens", "integer"),
    Column("answer_tokens", "integer"),
    Column("reused", "integer"),
    Column("left_out", "integer"),
    Column("seconds", "number"),
    Column("finish", "string"),
    Column("error", "string"),
)
_PLAIN = ("string", "integer", "number", "boolean")


def columns(schema: Mapping[str, Any] | None) -> list[Column]:
    """The columns of a table whose answers have this schema: one for each of its properties, or `answer`."""
    return [*_BEFORE, *([field for field, _ in _fields(schema)] or _ANSWER), *_AFTER]


def record(row: Row, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """The values of a row by column; None for what there is not."""
    properties = _fields(schema)
    values = {field.name: (row.fields or {}).get(name) for field, name in properties}
    if not properties:
        values = {"answer": None if row.error else row.answer}
    fixed = {column.name: getattr(row, column.name) for column in (*_BEFORE, *_AFTER)}
    return fixed | values | {"finish": row.finish or None, "error": row.error or None}


def row_of(source: Source, answer: Answer, left_out: int, schema: Mapping[str, Any] | None) -> Row:
    """The row of an answer about a document."""
    done, fields, error = answer.done, None, ""
    if answer.lack is not None:
        error = answer.lack.message
    elif schema is not None:
        fields, error = _parsed(answer)
    return Row(
        source.name,
        source.version,
        answer.question,
        answer.text,
        fields,
        tokens=done.prompt_tokens,
        answer_tokens=done.completion_tokens,
        reused=done.reused_tokens,
        left_out=left_out,
        seconds=round(done.prefill_seconds + done.decode_seconds, 3),
        finish=done.finish_reason,
        error=error,
    )


def failed(source: Source, questions: Sequence[str], why: str) -> list[Row]:
    """The rows of questions about a document that have no answers."""
    return [Row(source.name, source.version, question, error=why) for question in questions]


def _parsed(answer: Answer) -> tuple[Mapping[str, Any] | None, str]:
    """The fields of an answer that has a schema, and what is wrong with it."""
    try:
        value = json.loads(answer.text)
    except ValueError:
        return None, TRUNCATED
    fields = value if isinstance(value, dict) else {}
    large = [name for name, field in fields.items() if isinstance(field, int) and abs(field) >= LARGEST]
    return (None, f"{large[0]} is too large a number for a table") if large else (fields, "")


def _fields(schema: Mapping[str, Any] | None) -> list[tuple[Column, str]]:
    """The columns of a schema's properties, and the properties' names."""
    properties = (schema or {}).get("properties") or {}
    taken = {column.name for column in (*_BEFORE, *_AFTER)}
    return [
        (Column(f"{_RENAMED}{name}" if name in taken else name, _type(property)), name)
        for name, property in properties.items()
    ]


def _type(property: Any) -> str:
    """The type of a property's column."""
    named = property.get("type") if isinstance(property, dict) else None
    types = [named] if isinstance(named, str) else [name for name in named or () if name != "null"]
    return types[0] if len(types) == 1 and types[0] in _PLAIN else "json"
