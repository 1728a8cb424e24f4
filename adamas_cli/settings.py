"""The user's settings: names, types and defaults, independent of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

DEFAULT_SOURCES, MOST_SOURCES = 3, 50  # passages shown for an answer
DENSE_LAYERS = 2  # the first layers attend broadly, and stay dense (paper, section 4.1; docs/accuracy.md)

DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal[
    "auto", "packed", "none", "bnb-4bit", "bnb-8bit", "torchao-int8", "torchao-int4", "fp8"
]
AttentionKind = Literal["auto", "adamas", "full"]
ReadKind = Literal["auto", "dense", "sparse"]
Scorer = Literal["dot", "manhattan"]
BackendName = Literal["auto", "triton", "cpu", "torch"]
CacheDType = Literal["auto", "16", "int8", "int4"]
KvPlace = Literal["auto", "gpu", "host"]
FEW_BITS = ("int8", "int4")  # the formats with scales
DraftKind = Literal["auto", "off", "text"]
Ocr = Literal["auto", "always", "never"]
OnOverflow = Literal["error", "truncate", "map-reduce"]


@dataclass(frozen=True)
class ModelSettings:
    """Which model answers, and how it is loaded. model: None for the default, or for the base model of the
    adapter (a folder). threads: None for all physical cores. rope_scaling: of positions, as in `yarn:4`, for
    a longer context than the model's; None for the model's own. gpus: over how many the model is split.
    """

    model: str | None = None
    adapter: str | None = None
    dtype: DType = "auto"
    device: str = "auto"
    quantization: Quantization = "auto"
    threads: int | None = None
    trust_remote_code: bool = False
    offline: bool = False
    rope_scaling: str | None = None
    gpus: int = 1

    @property
    def finding(self) -> dict[str, Any]:
        """The arguments of `models.resolve` in these settings, besides the name."""
        return {name: getattr(self, name) for name in ("device", "offline", "adapter", "rope_scaling")}

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of `models.load` in these settings."""
        names = ("device", "dtype", "quantization", "threads", "trust_remote_code")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class DecodingSettings:
    """How documents are read and how answer tokens attend to them. read: whether the tokens of a document
    attend to all earlier tokens, or skip blocks with little attention. budget: tokens, None to depend on the
    context. error: share of a head's attention below which tokens are dropped from the budget, 0 for none.
    prefill_chunk: tokens, None to depend on the device. draft: look up an answer's next tokens in the text
    and check several at once: when that is expected to be faster, never, or always. cache_dtype: the format
    of keys and values: in 16 bits, in fewer, or (auto) as the model computes them, but in 16 bits on a CPU
    that rounds activations to bytes. kv: where a GPU's keys and values are, except the first layers': in its
    memory, in the host's, or in the host's if they do not fit.
    """

    attn: AttentionKind = "auto"
    read: ReadKind = "auto"
    budget: int | None = None
    error: float = 0.0
    scorer: Scorer = "dot"
    dense_layers: int = DENSE_LAYERS
    backend: BackendName = "auto"
    prefill_chunk: int | None = None
    draft: DraftKind = "auto"
    cache_dtype: CacheDType = "auto"
    kv: KvPlace = "auto"


@dataclass(frozen=True)
class InputSettings:
    """Which files are read, and how. max_file_size: bytes. ocr_language: of pictures of pages.
    encoding: Python's codec, None to detect it. files_from: a file that lists paths.
    """

    include: list[str] | None = None
    exclude: list[str] | None = None
    no_gitignore: bool = False
    hidden: bool = False
    secrets: bool = False
    max_file_size: int | None = None
    generated: bool = False
    whole_pages: bool = False
    ocr: Ocr = "auto"
    ocr_language: str = "auto"
    no_tree: bool = False
    line_numbers: bool = False
    encoding: str | None = None
    text: bool = False
    files_from: str | None = None
    null: bool = False


@dataclass(frozen=True)
class DocumentSettings:
    """How several documents are read. apart: each on its own, at the same positions as the others, so that
    their order does not matter and only the longest must fit the context; answers are then approximate.
    """

    apart: bool = False


@dataclass(frozen=True)
class PromptSettings:
    """The prompt, and the limits of its and the answer's tokens. ctx_size: 0 for as many as needed, up to the
    model's. token_budget: maximum for documents and question. think_tokens: maximum of an answer's thoughts,
    None for half of the answer.
    """

    system: str | None = None
    template: str | None = None
    max_tokens: int = 1024
    ctx_size: int = 0
    on_overflow: OnOverflow = "error"
    token_budget: int | None = None
    think: bool | None = None
    think_tokens: int | None = None


@dataclass(frozen=True)
class OriginSettings:
    """Whether to show where an answer came from. sources: number of passages. cite: whether to ask for
    quotations and look them up.
    """

    sources: int | None = None
    cite: bool = False

    @property
    def counts(self) -> bool:
        """Whether attention is collected."""
        return self.sources is not None

    @property
    def wanted(self) -> bool:
        """Whether there is anything to show."""
        return self.counts or self.cite


@dataclass(frozen=True)
class OutputSettings:
    """Where the answer goes, and what is shown besides it."""

    output: Path | None = None
    json: bool = False
    hide_reasoning: bool = False
    usage: bool | None = None
    quiet: bool = False
    verbose: int = 0
