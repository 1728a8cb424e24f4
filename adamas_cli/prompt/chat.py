"""A model's chat template, filled in as transformers does, but without importing it.

The environment is the one that chat templates are written for: a sandbox, because they come with the model.
"""

from __future__ import annotations

import json
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.prompt.messages import unusable

_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_EARLIER_TEMPLATE, _SPECIAL = "chat_template.json", "special_tokens_map.json"  # in older folders


class ChatTemplateFile:
    """A model folder's chat settings: its template, and the special tokens that it may name."""

    def __init__(self, directory: Path) -> None:
        """Raises ModelUnavailableError if the folder's settings cannot be read."""
        self.directory = directory
        settings = (_SPECIAL, _EARLIER_TEMPLATE, _CONFIG)  # the last one takes precedence
        self.settings = {name: v for file in settings for name, v in _settings(directory / file).items()}
        file = directory / _TEMPLATE
        try:
            self.chat_template: str | None = (
                file.read_text(encoding="utf-8")
                if file.is_file()
                else _chosen(self.settings.get("chat_template"))
            )
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ModelUnavailableError(unusable(error)) from error

    def apply_chat_template(self, conversation: list[dict[str, object]], **options: object) -> str:
        """The conversation in the model's own format. options: variables of the template, except `tokenize`.
        Raises whatever the template does, since it is a program: a TemplateError if it refuses the
        conversation.
        """
        variables = {name: value for name, value in options.items() if name != "tokenize"}
        variables = {"tools": None, "documents": None, **self.special_tokens, **variables}
        return self._compiled.render(messages=conversation, **variables)

    @property
    def special_tokens(self) -> dict[str, str]:
        """The texts of tokens with a role, by names such as `bos_token`."""
        named = {name: value for name, value in self.settings.items() if name.endswith("_token")}
        texts = {
            name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()
        }
        return {name: text for name, text in texts.items() if isinstance(text, str)}

    @cached_property
    def _compiled(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _as_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _this_year
        return environment.from_string(self.chat_template or "")


def _this_year(form: str) -> str:
    """The date that templates tell a model: the first day of the year. It comes before the documents, so with
    the actual date all kept caches would be invalid the next day.
    """
    return date(date.today().year, 1, 1).strftime(form)


class _Generation(Extension):
    """`{% generation %}` marks an assistant's text, which matters only for training."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own form

    def parse(self, parser: Parser) -> list[Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelUnavailableError(f"{file} is not JSON: {error}. Fetch the model again.") from error
    if not isinstance(found, dict):
        raise ModelUnavailableError(f"{file} is not a JSON object. Fetch the model again.")
    return found


def _chosen(templates: Any) -> str | None:
    """The template in the settings: the only one, or the one called `default`. Raises KeyError, TypeError or
    ValueError if there are only others.
    """
    if not templates or isinstance(templates, str):
        return templates or None
    if isinstance(templates, list):
        templates = {entry["name"]: entry["template"] for entry in templates}
    if not isinstance(templates, dict):
        raise TypeError("it is not text")
    if "default" not in templates:
        raise ValueError(f"none of {', '.join(templates)} is the default")
    return str(templates["default"])


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
