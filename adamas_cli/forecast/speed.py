"""How fast a model reads and answers on this machine: remembered from earlier runs, or from a calibration.

A small JSON file in the cache directory holds a few timings for each model and way to run it; it holds
nothing about documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from adamas_cli.engine.eta import PrefillCost
from adamas_cli.engine.events import Done
from adamas_cli.machine.cores import usual_threads
from adamas_cli.machine.cpu import cpu_name
from adamas_cli.memo import Memo

LEAST_SECONDS = 1.0  # minimum length of a run; shorter ones measure the start-up
LEAST_STEPS = 8  # minimum number of answer tokens
_ALIKE, _KEPT_TIMINGS = 3, 8
_SPEEDS = Memo("speeds.json")


@dataclass(frozen=True)
class Reading:
    """Positions start to end of a prompt were read in this many seconds."""

    start: int
    end: int
    seconds: float


@dataclass(frozen=True)
class Decoding:
    """This many answer tokens after `context` others took this many seconds."""

    context: int
    tokens: int
    seconds: float


@dataclass
class Speed:
    """Timings of one model on this machine. calibrated: measured on a few layers of random weights."""

    calibrated: bool = False
    readings: list[Reading] = field(default_factory=list)
    decodings: list[Decoding] = field(default_factory=list)

    def prefill_seconds(self, start: int, end: int, attention_share: float) -> float | None:
        """Seconds for positions start to end, from the timings of prompts of similar length: the median of
        three, because the very first run also compiles. attention_share: see `PrefillCost`.
        """
        alike = sorted(self.readings, key=lambda timed: abs(timed.end - end))[:_ALIKE]
        guesses = []
        for reading in alike:
            cost = PrefillCost(attention_share)
            cost.add(reading.start, reading.end, reading.seconds)
            guesses.append(cost.remaining(start, end))
        return sorted(filter(None, guesses))[(len(guesses) - 1) // 2] if guesses else None

    def step_seconds(self, context: int, token_share: float) -> float | None:
        """Seconds for one answer token after `context` others.

        token_share: cost of one more token of context, relative to everything that does not depend on it.
        """
        if not self.decodings:
            return None
        nearest = min(self.decodings, key=lambda timed: abs(timed.context - context))
        each = nearest.seconds / nearest.tokens
        return each * (1 + token_share * context) / (1 + token_share * nearest.context)


def computing_device(kind: str, threads: int | None, gpus: int = 1) -> str:
    """The GPU, or the processor with the threads that compute on it. gpus: over how many a model is split."""
    one = _computing_device(kind, threads)
    return one if gpus == 1 else f"{gpus} x {one}"


def _computing_device(kind: str, threads: int | None) -> str:
    if kind == "cuda":
        from adamas_cli.machine.gpus import gpus

        return gpus()[0].name if gpus() else kind
    computing = threads or usual_threads()
    return f"{cpu_name()}, {computing} threads"


def speed_key(
    fingerprint: str,
    *,
    dtype: str,
    quantization: str,
    device: str,
    attention: str,
    read: str,
    in_bytes: bool = False,
) -> str:
    """The scope of timings. device: its name and number of threads. read: `dense` or `sparse`. in_bytes: see
    `LoadedModel`.
    """
    ways = [attention, *(["sparse"] if read == "sparse" else []), *(["bytes"] if in_bytes else [])]
    return " ".join([fingerprint[:16], dtype, quantization, *ways, device])


def recall(key: str) -> Speed | None:
    """The known timings; None if there are none."""
    known = _SPEEDS.get(key)
    if known is None:
        return None
    try:
        return Speed(
            known["calibrated"],
            [Reading(**timed) for timed in known["readings"]],
            [Decoding(**timed) for timed in known["decodings"]],
        )
    except (KeyError, TypeError):
        return None


def remember(
    key: str, readings: Sequence[Reading], decodings: Sequence[Decoding], *, calibrated: bool = False
) -> Speed:
    """Add timings and return all known ones. Real runs replace a calibration, and a new calibration replaces
    everything; disk errors are ignored.
    """
    known = recall(key)
    if known is None or known.calibrated or calibrated:
        known = Speed()
    speed = Speed(
        calibrated,
        [*known.readings, *readings][-_KEPT_TIMINGS:],
        [*known.decodings, *decodings][-_KEPT_TIMINGS:],
    )
    _SPEEDS.put(key, asdict(speed))
    return speed


def remember_run(key: str, done: Done) -> None:
    """Add an answer's timings, if it was long enough."""
    read = Reading(done.reused_tokens, done.prompt_tokens, done.prefill_seconds)
    readings = [read] if read.seconds >= LEAST_SECONDS and read.end > read.start else []
    steps = Decoding(done.prompt_tokens, done.completion_tokens - 1, done.decode_seconds)
    decodings = [steps] if steps.tokens >= LEAST_STEPS and readings else []
    if readings:
        remember(key, readings, decodings)
