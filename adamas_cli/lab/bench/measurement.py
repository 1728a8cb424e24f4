"""One test of one engine, and its rows: as data under llama-bench's names, and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

Record = dict[str, Any]
OURS = "adamas"
NOTHING = "-"


class Kept(NamedTuple):
    """Where keys and values are beside a GPU, see `Decision.kv`, and their `DecodingSettings.cache_dtype`;
    None where there is no choice.
    """

    place: str | None = None
    format: str | None = None


USUAL = Kept()


@dataclass(frozen=True)
class Measurement:
    """The repeats of one test. A prefill reads `length` tokens; a decode generates `generated` after them.

    seconds: for each repeat. generated: 0 for a prefill. first_token_seconds: from a question after the
    document to the answer's first token. agreement: share of tokens that full attention gave too.
    step_bytes: the minimum that one token's step must read. attention: `full` or `adamas` for a decode,
    `full` or `sparse` for a prefill; blocks_computed: the share of blocks that a sparse prefill computed.
    sequences: answers that decode together, over one document or each over its own. kept: how keys and
    values are kept.
    """

    engine: str
    attention: str
    length: int
    generated: int
    seconds: Sequence[float]
    peak_memory_bytes: int
    backend: str | None = None
    budget: int | None = None
    first_token_seconds: float | None = None
    agreement: float | None = None
    step_bytes: int | None = None
    blocks_computed: float | None = None
    sequences: int = 1
    own: bool = False
    kept: Kept = USUAL

    @property
    def test(self) -> str:
        """Its name in llama-bench's form, with the number of answers if there are several."""
        several = f" x{self.sequences}{' own' if self.own else ''}" if self.sequences > 1 else ""
        return f"tg{self.generated}{several} @ d{self.length}" if self.generated else f"pp{self.length}"

    @property
    def alone(self) -> str:
        """The name of the same test with one answer."""
        return replace(self, sequences=1).test

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each repeat, for all answers together."""
        return [self.sequences * (self.generated or self.length) / seconds for seconds in self.seconds]

    @property
    def rate(self) -> float:
        """Their mean."""
        return statistics.fmean(self.rates)


class Rows:
    """Turns measurements into rows. Measurements to compare with come first: other engines before this one,
    and full attention before sparse.

    settings: fields of every row. others: the engines to compare with. copy: the device's copy bandwidth, in
    bytes per second. batches: whether answers that decode together are measured.
    """

    def __init__(
        self, settings: Mapping[str, object], others: Sequence[str], copy: float, *, batches: bool = False
    ) -> None:
        self._settings, self._batches = settings, batches
        self._copy = copy
        self._others = others
        self._rates: dict[tuple[str, str, str], float] = {}

    def row(self, measured: Measurement, others_cores: float) -> Record:
        """One row; values that do not apply to this measurement are None. others_cores: cores that other
        programs kept busy meanwhile.
        """
        self._rates[measured.engine, measured.attention, measured.test] = measured.rate
        ours = measured.engine == OURS
        compared = measured.generated or measured.attention != "full"
        rates = measured.rates
        floor = measured.step_bytes / self._copy if measured.step_bytes else None
        return {
            "engine": measured.engine,
            "test": measured.test,
            "n_prompt": 0 if measured.generated else measured.length,
            "n_gen": measured.generated,
            "n_depth": measured.length if measured.generated else 0,
            "n_sequences": measured.sequences,
            "own_documents": measured.own,
            "attention": measured.attention,
            "backend": measured.backend,
            "budget": measured.budget,
            "kv": measured.kept.place,
            "cache_dtype": measured.kept.format,
            "avg_ts": measured.rate,
            "stddev_ts": statistics.stdev(rates) if len(rates) > 1 else 0.0,
            "samples_ts": rates,
            "ratio": self._against(OURS, measured) if ours and compared else None,
            "ratio_to_one": self._to_one(measured) if measured.sequences > 1 else None,
            **{_key(name): self._against(name, measured) if ours else None for name in self._others},
            "ttft_s": measured.first_token_seconds,
            "agreement": measured.agreement,
            "blocks_computed": measured.blocks_computed,
            "copy_floor_s": floor,
            "copy_share": None if floor is None else floor * measured.rate,
            "peak_memory_bytes": measured.peak_memory_bytes,
            "others_cores": round(others_cores, 2),
            **self._settings,
        }

    @property
    def titles(self) -> list[str]:
        """The titles of the Markdown columns."""
        return [title for title, _ in self._columns]

    def cells(self, row: Record) -> list[str]:
        """A row as Markdown cells."""
        return [write(row) for _, write in self._columns]

    @property
    def _columns(self) -> list[tuple[str, Callable[[Record], str]]]:
        engines = [("engine", _value("engine", str))] if self._others else []
        against = [(f"vs {name}", _value(_key(name), _times)) for name in self._others]
        return [
            *engines,
            ("test", _value("test", str)),
            ("attention", _attention),
            ("tokens/s", lambda row: f"{row['avg_ts']:,.2f} ± {row['stddev_ts']:,.2f}"),
            ("ratio to full", _value("ratio", _times)),
            *([("ratio to one", _value("ratio_to_one", _times))] if self._batches else []),
            *against,
            ("first token, s", _value("ttft_s", "{:,.2f}".format)),
            ("agreement", _value("agreement", "{:.0%}".format)),
            ("of copy bandwidth", _value("copy_share", "{:.0%}".format)),
            ("peak memory", _value("peak_memory_bytes", lambda size: f"{size / 1e9:,.2f} GB")),
            ("reads", lambda row: row["text"] or "random tokens"),
        ]

    def _to_one(self, measured: Measurement) -> float | None:
        """The speed relative to one answer at a time, if that was measured."""
        rate = self._rates.get((measured.engine, measured.attention, measured.alone))
        return None if rate is None else measured.rate / rate

    def _against(self, engine: str, measured: Measurement) -> float | None:
        """The speed relative to full attention of an engine, if that was measured."""
        rate = self._rates.get((engine, "full", measured.test))
        return None if rate is None else measured.rate / rate


def _key(engine: str) -> str:
    return f"vs_{engine.replace('.', '_')}"


def _attention(row: Record) -> str:
    """How tokens attend, and to what, if keys and values are not kept as usual."""
    told = [row["attention"]]
    if row["kv"] == "host":
        told.append("in host memory")
    if row["cache_dtype"] not in (None, "auto"):
        told.append(f"{row['cache_dtype']} cache")
    return ", ".join(told)


def _times(value: float) -> str:
    return f"{value:.2f}x"


def _value(key: str, write: Callable[[Any], str]) -> Callable[[Record], str]:
    return lambda row: NOTHING if row[key] is None else write(row[key])
