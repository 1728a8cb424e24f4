"""Events that the engine reports. The display, the JSON record, the bench and the tests read this stream."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prefill:
    """Prompt tokens read so far; sent after each chunk and, if it takes a while, before the first one."""

    done: int  # tokens in the cache that belong to this prompt, reused ones included
    total: int  # tokens of the prompt
    reused: int  # tokens that were in the cache before this prompt was read
    seconds: float  # since the prefill began
    remaining_seconds: (
        float | None
    )  # None until one chunk has been timed; accounts for growing attention cost
    chunk: int  # tokens per step, smaller after an out-of-memory
    sparsely: bool = False  # whether blocks of tokens with little attention are skipped


@dataclass(frozen=True)
class Likelihood:
    """How likely a token was to the model. logprob: from its raw logits, before temperature and any filter.
    likeliest: ids and log-probabilities of the likeliest tokens, in order.
    """

    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Token:
    """One token of the answer."""

    id: int
    index: int  # 0 for the first token of the answer
    context: int  # tokens in the cache that this token could attend to
    attended: int  # tokens that a sparse layer attended to for it; equals `context` with full attention
    seconds: float  # since decoding began
    memory_bytes: int  # peak memory of the process or, on a GPU, of the device allocator
    likelihood: Likelihood | None = None  # where sampling asks for it


@dataclass(frozen=True)
class Drafted:
    """Draft statistics. proposed, accepted: tokens; passes: of the model, including those of one token."""

    proposed: int = 0
    accepted: int = 0
    passes: int = 0

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens per pass, the model's own and accepted ones, to two decimals; None without a pass."""
        return round(1 + self.accepted / self.passes, 2) if self.passes else None

    def __add__(self, other: Drafted) -> Drafted:
        return Drafted(
            self.proposed + other.proposed, self.accepted + other.accepted, self.passes + other.passes
        )


@dataclass(frozen=True)
class Done:
    """The answer is complete."""

    finish_reason: str  # "stop" or "length"
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    prefill_seconds: float
    first_token_seconds: float  # from the start of the prefill to the first token of the answer
    decode_seconds: float  # from the first token to the last
    peak_memory_bytes: int
    drafted: Drafted = Drafted()


Event = Prefill | Token | Done
