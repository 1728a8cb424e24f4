"""What is asked of every document, and how: all that a worker in another process needs to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from adamas_cli.documents.apart import Source
from adamas_cli.documents.filtering import Selection
from adamas_cli.engine.sampling import Sampling
from adamas_cli.mapping.rows import Row
from adamas_cli.settings import DecodingSettings, ModelSettings, PromptSettings
from adamas_cli.store.settings import StoreSettings

_WHERE = ("device", "offline", "threads")  # fields of ModelSettings that say where a model runs, not which


@dataclass(frozen=True)
class Job:
    """The questions and all settings. schema: of the answers, if they are JSON."""

    questions: tuple[str, ...]
    model: ModelSettings
    attention: DecodingSettings
    sampling: Sampling
    selection: Selection
    prompt: PromptSettings
    store: StoreSettings
    schema: Mapping[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """What its answers depend on besides documents and questions, as JSON values."""
        model = {name: value for name, value in asdict(self.model).items() if name not in _WHERE}
        groups = (self.attention, self.sampling, self.selection, self.prompt)
        facts = model | {name: value for group in groups for name, value in asdict(group).items()}
        return {name: _as_json(value) for name, value in facts.items()} | {"schema": self.schema}


class Asked(NamedTuple):
    """A document and the questions that have no row yet."""

    source: Source
    questions: Sequence[str]


class Answered(NamedTuple):
    """The rows about one document, and the seconds that it took."""

    source: Source
    rows: Sequence[Row]
    seconds: float


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
