"""The options that commands share: each flag is defined once, in a group that a command takes as a whole."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from adamas_cli.store.settings import StoreSettings

DEFAULT_MAX_TOKENS = 1024
DEFAULT_SOURCES, MOST_SOURCES = 3, 50

_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3}

_model = partial(typer.Option, rich_help_panel="Model")
_attention = partial(typer.Option, rich_help_panel="Attention")
_sampling = partial(typer.Option, rich_help_panel="Sampling")
_input = partial(typer.Option, rich_help_panel="Input")
_prompt = partial(typer.Option, rich_help_panel="Question and answer")
_origin = partial(typer.Option, rich_help_panel="Where the answer came from")
_store = partial(typer.Option, rich_help_panel="Kept documents")
_output = partial(typer.Option, rich_help_panel="Output")

# What belongs to one call and would surprise as a setting for all of them.
_NOT_SETTINGS = {"encoding", "files_from", "json", "null", "output", "text"}


def parse_length(text: str | int) -> int:
    """The number that `32768`, `32k` or `32K` means; k is 1024, m and g its powers.

    Raises typer.BadParameter for anything else.
    """
    digits = str(text).strip().lower()
    unit = _UNITS.get(digits[-1:], 1)
    if unit > 1:
        digits = digits[:-1]
    if not digits.isdecimal():
        raise typer.BadParameter(f"{text!r} is not a length such as 32768 or 32k")
    return int(digits) * unit


def parse_encoding(name: str) -> str:
    """The encoding that a name such as `windows-1250`, `koi8-r` or `latin1` means, as Python calls it.

    Raises typer.BadParameter for one that is unknown.
    """
    from adamas_cli.documents.encodings import codec_of

    codec = codec_of(name)
    if codec is None:
        raise typer.BadParameter(f"{name!r} is not an encoding such as windows-1250, koi8-r or shift_jis")
    return codec


def _short_names(incomplete: str) -> list[str]:
    """The models that a shell offers."""
    from adamas_cli.models.aliases import aliases

    return [name for name in aliases() if name.startswith(incomplete)]


_length = {"parser": parse_length, "metavar": "LENGTH"}

# Flags that a command may also take without their group.
Device = Annotated[str, _model("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 and so on.")]
Quantization = Annotated[
    Literal["auto", "packed", "none", "bnb-4bit", "bnb-8bit", "torchao-int8", "torchao-int4", "fp8"],
    _model(
        "--quantization",
        help="packed: 8 or 4 bits on a CPU, as few as lose nothing that counts; none: as in the files; "
        "auto: packed on a CPU unless --dtype is given. The others serve GPUs.",
    ),
]
Threads = Annotated[
    int | None,
    _model(
        "--threads",
        min=1,
        metavar="N",
        help="Threads that compute on a CPU; by default its physical cores.",
        show_default=False,
    ),
]
Budget = Annotated[
    int, _attention("--budget", min=1, help="Tokens that each query head attends to in a sparse layer.")
]
Scorer = Annotated[Literal["dot", "manhattan"], _attention("--scorer", help="How 2-bit codes are compared.")]
DenseLayers = Annotated[
    int, _attention("--dense-layers", min=0, help="First layers that keep full attention.")
]
Backend = Annotated[
    Literal["auto", "triton", "cpu", "torch"],
    _attention("--backend", help="What computes sparse attention; auto takes the fastest that runs."),
]
Questions = Annotated[
    list[str] | None,
    _prompt(
        "-q",
        "--question",
        metavar="TEXT",
        help="A question (repeatable: the documents are read once); then all arguments are sources.",
    ),
]
System = Annotated[
    str | None, _prompt("-s", "--system", metavar="TEXT", help="System prompt in place of the default.")
]
TemplateFile = Annotated[
    str | None, _prompt("-t", "--template", metavar="FILE", help="Prompt template in place of the default.")
]
Think = Annotated[
    bool | None, _prompt("--think/--no-think", help="Ask a thinking model to think, or not to.")
]
OnOverflow = Annotated[
    Literal["error", "truncate", "map-reduce"],
    _prompt(
        "--on-overflow",
        help="Over-long input: stop, keep its head and tail, or read it part by part and merge the answers.",
    ),
]
Format = Annotated[
    Literal["md", "csv", "json", "jsonl"], _output("--format", help="How the figures are printed.")
]


@dataclass(frozen=True)
class ModelOptions:
    """Which model answers, and how it is loaded."""

    model: Annotated[
        str | None,
        _model(
            "-m",
            "--model",
            envvar="ADAMAS_MODEL",
            metavar="NAME",
            autocompletion=_short_names,
            help="Alias (see `adamas models ls`), Hugging Face id, directory or .gguf file.",
        ),
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        _model("--dtype", help="Number format of the weights."),
    ] = "auto"
    device: Device = "auto"
    quantization: Quantization = "auto"
    threads: Threads = None
    trust_remote_code: Annotated[
        bool, _model("--trust-remote-code", help="Run model code that comes with the model's files.")
    ] = False
    offline: Annotated[bool, _model("--offline", help="Make no network call at all.")] = False

    @property
    def loading(self) -> dict[str, Any]:
        """What `models.load` is told of these."""
        names = ("device", "dtype", "quantization", "threads", "trust_remote_code")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class AttentionOptions:
    """How each answer token attends to the documents."""

    attn: Annotated[
        Literal["auto", "adamas", "full"],
        _attention("--attn", help="Sparse, full, or sparse as soon as the context is long enough to gain."),
    ] = "auto"
    budget: Annotated[
        int | None,
        _attention(
            "--budget",
            min=1,
            help="Tokens that each query head attends to in a sparse layer; by default 4 times the context's "
            "square root, and at least 256.",
            show_default=False,
        ),
    ] = None
    scorer: Scorer = "dot"
    dense_layers: DenseLayers = 2
    backend: Backend = "auto"
    prefill_chunk: Annotated[
        int | None,
        _attention(
            "--prefill-chunk",
            help="Prompt tokens read per step; by default 8192 on a GPU and 512 on a CPU.",
            show_default=False,
            **_length,
        ),
    ] = None


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is drawn; the default is greedy, so that answers repeat."""

    temperature: Annotated[float, _sampling("--temp", min=0.0, help="0 takes the likeliest token.")] = 0.0
    top_p: Annotated[
        float, _sampling("--top-p", min=0.0, max=1.0, help="Likeliest tokens that make up this probability.")
    ] = 1.0
    top_k: Annotated[int, _sampling("--top-k", min=0, help="Likeliest tokens kept; 0 keeps all.")] = 0
    min_p: Annotated[
        float, _sampling("--min-p", min=0.0, max=1.0, help="Least probability, relative to the likeliest.")
    ] = 0.0
    seed: Annotated[int | None, _sampling("--seed", help="Makes drawn answers repeat.")] = None


@dataclass(frozen=True)
class InputOptions:
    """Which files of the sources are read."""

    include: Annotated[
        list[str] | None,
        _input("-i", "--include", metavar="PATTERN", help="Only these files (gitignore syntax; repeatable)."),
    ] = None
    exclude: Annotated[
        list[str] | None,
        _input("-e", "--exclude", metavar="PATTERN", help="Not these files (gitignore syntax; repeatable)."),
    ] = None
    no_gitignore: Annotated[bool, _input("--no-gitignore", help="Read ignored files too.")] = False
    hidden: Annotated[bool, _input("--hidden", help="Read hidden files and folders too.")] = False
    max_file_size: Annotated[
        int | None, _input("--max-file-size", help="Skip larger files found in folders.", **_length)
    ] = None
    generated: Annotated[
        bool, _input("--generated", help="Read generated, vendored, minified and lock files too.")
    ] = False
    no_tree: Annotated[bool, _input("--no-tree", help="Leave out the list of a folder's files.")] = False
    line_numbers: Annotated[
        bool, _input("--line-numbers", help="Begin each line with its number, for answers that name lines.")
    ] = False
    encoding: Annotated[
        str | None,
        _input(
            "--encoding",
            metavar="NAME",
            parser=parse_encoding,
            help="Encoding of named files, and of those in folders that are not in Unicode; by default it is "
            "found.",
            show_default=False,
        ),
    ] = None
    text: Annotated[
        bool, _input("--text", help="Read every file as the text that it is, even a binary one.")
    ] = False
    files_from: Annotated[
        str | None, _input("--files-from", metavar="FILE", help="Read the list of paths from a file or `-`.")
    ] = None
    null: Annotated[bool, _input("-0", "--null", help="Paths in that list end with NUL.")] = False


@dataclass(frozen=True)
class PromptOptions:
    """What is asked, and how much room the prompt and the answer have."""

    system: System = None
    template: TemplateFile = None
    max_tokens: Annotated[
        int, _prompt("-n", "--max-tokens", help="Longest answer, in tokens.", **_length)
    ] = DEFAULT_MAX_TOKENS
    ctx_size: Annotated[
        int,
        _prompt(
            "--ctx-size", help="Context in tokens; 0 is as much as needed, up to the model's.", **_length
        ),
    ] = 0
    on_overflow: OnOverflow = "error"
    token_budget: Annotated[
        int | None,
        _prompt(
            "--token-budget",
            help="Stop if documents and question are more tokens than this.",
            show_default=False,
            **_length,
        ),
    ] = None
    think: Think = None


@dataclass(frozen=True)
class SummaryPromptOptions(PromptOptions):
    """The same for a summary, which is of all that was given, however long."""

    on_overflow: OnOverflow = "map-reduce"


@dataclass(frozen=True)
class OriginOptions:
    """Whether it is shown where an answer came from."""

    sources: Annotated[
        int | None,
        _origin(
            "--sources",
            min=1,
            max=MOST_SOURCES,
            metavar="[N]",
            help="Show the N passages that the answer attended to most: where the model looked, which is no "
            f"proof; {DEFAULT_SOURCES} without a number.",
            show_default=False,
        ),
    ] = None
    cite: Annotated[
        bool,
        _origin("--cite", help="Ask for quotations, and look each one up, word for word, in the documents."),
    ] = False

    @property
    def counts(self) -> bool:
        """Whether attention is counted."""
        return self.sources is not None

    @property
    def wanted(self) -> bool:
        """Whether there is anything to show."""
        return self.counts or self.cite


@dataclass(frozen=True)
class StoreOptions:
    """Whether documents that were read are kept on disk, so that no later question reads them again."""

    no_doc_cache: Annotated[
        bool,
        _store(
            "--no-doc-cache",
            envvar="ADAMAS_NO_DOC_CACHE",
            help="Neither use documents that were read before nor keep these.",
        ),
    ] = False
    doc_cache_ro: Annotated[
        bool, _store("--doc-cache-ro", help="Use documents that were read before, but keep none.")
    ] = False
    doc_cache_size: Annotated[
        int,
        _store(
            "--doc-cache-size",
            help="Most that all kept documents take, in bytes such as 20g; by default 20g, or 10 % of the "
            "free disk if that is less.",
            show_default=False,
            **_length,
        ),
    ] = 0
    doc_cache_dtype: Annotated[
        Literal["auto", "int8"],
        _store(
            "--doc-cache-dtype",
            help="Keep as computed, or in half the bytes, which changes answers a little.",
        ),
    ] = "auto"

    @property
    def writes(self) -> bool:
        """Whether anything made of documents may be kept for later runs."""
        return not (self.no_doc_cache or self.doc_cache_ro)

    @property
    def settings(self) -> StoreSettings:
        """What the store is told of these."""
        return StoreSettings(self.doc_cache_ro, self.doc_cache_size or None, self.doc_cache_dtype)


@dataclass(frozen=True)
class OutputOptions:
    """Where the answer goes and what is shown beside it."""

    output: Annotated[
        Path | None,
        _output("-o", "--output", metavar="FILE", help="Write the answer to a file; `-` is stdout."),
    ] = None
    json: Annotated[bool, _output("--json", help="Print JSON.")] = False
    hide_reasoning: Annotated[
        bool, _output("-R", "--hide-reasoning", help="Do not show what a thinking model thinks.")
    ] = False
    usage: Annotated[
        bool | None,
        _output("-u", "--usage/--no-usage", help="Token counts and rates; shown on a terminal by default."),
    ] = None
    quiet: Annotated[bool, _output("--quiet", help="Show nothing but the answer and errors.")] = False
    verbose: Annotated[int, _output("-v", "--verbose", count=True, help="Say more; -vv adds tracebacks.")] = 0


GROUPS = (
    ModelOptions,
    AttentionOptions,
    SamplingOptions,
    InputOptions,
    PromptOptions,
    OriginOptions,
    StoreOptions,
    OutputOptions,
)


def setting_names() -> frozenset[str]:
    """The names that the configuration file may set, such as `max_tokens`."""
    return frozenset(field.name for group in GROUPS for field in fields(group)) - _NOT_SETTINGS


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """A command for typer whose option-group parameters are spread into one flag per field."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            flat.extend(flags(hints[name]))
        else:
            flat.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    def command(**values: Any) -> None:
        gathered = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        function(**gathered, **values)

    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    command.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return command


def flags(group: Any) -> list[inspect.Parameter]:
    """The parameters that typer makes a group's flags of."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]


def with_defaults(arguments: Sequence[str]) -> list[str]:
    """A command line in which `--sources`, whose number may be left out, has one."""
    completed: list[str] = []
    options = True
    for index, word in enumerate(arguments):
        completed.append(word)
        options = options and word != "--"
        if options and word == "--sources" and not "".join(arguments[index + 1 : index + 2]).isdecimal():
            completed.append(str(DEFAULT_SOURCES))
    return completed
