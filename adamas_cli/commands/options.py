"""The flags of all settings: each is declared once, and commands take them in groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_type_hints

import typer

from adamas_cli.engine.sampling import Sampling
from adamas_cli.settings import (
    DEFAULT_SOURCES,
    MOST_SOURCES,
    BackendName,
    DecodingSettings,
    DocumentSettings,
    InputSettings,
    ModelSettings,
    OnOverflow,
    OriginSettings,
    OutputSettings,
    PromptSettings,
)
from adamas_cli.store.settings import StoreSettings

_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3}

_model = partial(typer.Option, rich_help_panel="Model")
_attention = partial(typer.Option, rich_help_panel="Attention")
_sampling = partial(typer.Option, rich_help_panel="Sampling")
_input = partial(typer.Option, rich_help_panel="Input")
_prompt = partial(typer.Option, rich_help_panel="Question and answer")
_origin = partial(typer.Option, rich_help_panel="Where the answer came from")
_store = partial(typer.Option, rich_help_panel="Kept documents")
_output = partial(typer.Option, rich_help_panel="Output")

# Flags of a single call that would be surprising as permanent settings.
_NOT_SETTINGS = {"encoding", "files_from", "json", "null", "output", "text"}


def parse_length(text: str | int) -> int:
    """The number for `32768`, `32k` or `32K`; k is 1024, m and g its powers.

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
    """Python's codec for an encoding's name such as `windows-1250`, `koi8-r` or `latin1`.

    Raises typer.BadParameter if it is unknown.
    """
    from adamas_cli.documents.encodings import codec_of

    codec = codec_of(name)
    if codec is None:
        raise typer.BadParameter(f"{name!r} is not an encoding such as windows-1250, koi8-r or shift_jis")
    return codec


def _short_names(incomplete: str) -> list[str]:
    """The models that a shell completes: those with a short name, and those of other programs."""
    from adamas_cli.models.aliases import aliases
    from adamas_cli.models.stores import stored

    names = [*aliases(), *(model.name for model in stored())]
    return [name for name in names if name.startswith(incomplete)]


_length: dict[str, Any] = {"parser": parse_length, "metavar": "LENGTH"}

# Every flag of a group of settings, in help order. Type and default come from the field.
FLAGS: dict[type, dict[str, Any]] = {
    ModelSettings: {
        "model": _model(
            "-m",
            "--model",
            envvar="ADAMAS_MODEL",
            metavar="NAME",
            autocompletion=_short_names,
            help="Name from `adamas models ls`, Hugging Face ID, directory or .gguf file.",
        ),
        "adapter": _model(
            "--adapter",
            metavar="NAME",
            help="A LoRA adapter in PEFT's format: folder or Hugging Face ID; without -m, the model "
            "that it was made for is used.",
        ),
        "dtype": _model("--dtype", help="Number format of the weights."),
        "device": _model("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 and so on."),
        "quantization": _model(
            "--quantization",
            help="packed: the lowest width without measurable loss, on a CPU; none: as in the files; "
            "auto: packed on a CPU unless --dtype is given. The others serve GPUs.",
        ),
        "threads": _model(
            "--threads",
            min=1,
            metavar="N",
            help="CPU threads; by default the number of physical cores.",
            show_default=False,
        ),
        "trust_remote_code": _model("--trust-remote-code", help="Run code that the model's files contain."),
        "offline": _model("--offline", help="Make no network calls."),
        "rope_scaling": _model(
            "--rope-scaling",
            metavar="KIND:FACTOR",
            help="Scale positions for a longer context than the model's, such as yarn:4 for four times as "
            "many tokens; short texts are then read less well.",
            show_default=False,
        ),
        "gpus": _model(
            "--gpus",
            min=1,
            metavar="N",
            help="Split the model over the first N GPUs: one that does not fit a single card, or for speed.",
        ),
    },
    DecodingSettings: {
        "attn": _attention(
            "--attn", help="Sparse, full, or (auto) sparse from the context length at which it is faster."
        ),
        "read": _attention(
            "--read",
            help="How documents are read: densely, sparsely (blocks with little attention are left out), or "
            "(auto) sparsely from the length at which it is faster.",
        ),
        "budget": _attention(
            "--budget",
            min=1,
            help="Tokens that each query head attends to in a sparse layer, at most with --error; by default "
            "4 times the context's square root, and at least 256.",
            show_default=False,
        ),
        "error": _attention(
            "--error",
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Skip tokens below this estimated share of a head's attention, such as "
            "0.0005; 0 attends to the whole budget. Doubles the default budget.",
        ),
        "scorer": _attention("--scorer", help="How 2-bit codes are compared."),
        "dense_layers": _attention("--dense-layers", min=0, help="First layers that keep full attention."),
        "backend": _attention(
            "--backend", help="Implementation of sparse attention; auto takes the fastest that runs."
        ),
        "prefill_chunk": _attention(
            "--prefill-chunk",
            help="Prompt tokens read per step; by default 8192 on a GPU and 512 on a CPU.",
            show_default=False,
            **_length,
        ),
        "draft": _attention(
            "--draft",
            help="Look up the next tokens in the text and check several at once; answers stay the same, but "
            "for rounding on a GPU. Where that is faster, never, or at each repetition.",
        ),
        "cache_dtype": _attention(
            "--cache-dtype",
            help="Number format of the KV cache: as computed, 16 bits, 8 bits, or 8-bit keys with 4-bit "
            "values.",
        ),
        "kv": _attention(
            "--kv",
            help="Where a GPU keeps keys and values, except those of the first layers: in its own memory, in "
            "the host's, or (auto) in the host's if they do not fit.",
        ),
    },
    Sampling: {
        "temperature": _sampling(
            "--temp", min=0.0, help="Sampling temperature; 0 takes the likeliest token."
        ),
        "top_p": _sampling(
            "--top-p",
            min=0.0,
            max=1.0,
            help="Sample from the likeliest tokens that make up this probability.",
        ),
        "top_k": _sampling("--top-k", min=0, help="Sample from this many likeliest tokens; 0 is all."),
        "min_p": _sampling(
            "--min-p", min=0.0, max=1.0, help="Least probability, relative to the likeliest token's."
        ),
        "seed": _sampling("--seed", help="Seed; makes sampled answers repeatable."),
    },
    InputSettings: {
        "include": _input(
            "-i", "--include", metavar="PATTERN", help="Only these files (gitignore syntax; repeatable)."
        ),
        "exclude": _input(
            "-e", "--exclude", metavar="PATTERN", help="Skip these files (gitignore syntax; repeatable)."
        ),
        "no_gitignore": _input("--no-gitignore", help="Read ignored files too."),
        "hidden": _input(
            "--hidden", help="Read hidden files and folders too, not only those that git tracks."
        ),
        "secrets": _input("--secrets", help="Read files with keys, passwords and tokens too, such as .env."),
        "max_file_size": _input("--max-file-size", help="Skip larger files found in folders.", **_length),
        "generated": _input("--generated", help="Read generated, vendored, minified and lock files too."),
        "whole_pages": _input("--whole-pages", help="Read web pages with their menus and comments."),
        "ocr": _input(
            "--ocr",
            help="Read pictures of pages: in PDFs and pictures that are named; all pages and pictures; or "
            "none.",
        ),
        "ocr_language": _input(
            "--ocr-language",
            metavar="NAME",
            help="Of pictures: auto (Latin, Chinese and Japanese scripts), or ru, ko, ar and so on by "
            "tesseract.",
        ),
        "no_tree": _input("--no-tree", help="Leave out the list of a folder's files."),
        "line_numbers": _input("--line-numbers", help="Number the lines, so that answers can name them."),
        "encoding": _input(
            "--encoding",
            metavar="NAME",
            parser=parse_encoding,
            help="Encoding of named files, and of those in folders that are not in Unicode; by default it is "
            "found.",
            show_default=False,
        ),
        "text": _input("--text", help="Read every file as text, even a binary one."),
        "files_from": _input(
            "--files-from", metavar="FILE", help="Read a list of paths from a file or `-` (stdin)."
        ),
        "null": _input("-0", "--null", help="The paths in that list end with NUL."),
    },
    DocumentSettings: {
        "apart": _input(
            "--apart",
            help="Read each document apart from the others: a changed file costs only itself, and only the "
            "longest must fit the context; answers are approximate.",
        ),
    },
    PromptSettings: {
        "system": _prompt("-s", "--system", metavar="TEXT", help="System prompt instead of the default."),
        "template": _prompt(
            "-t", "--template", metavar="FILE", help="Prompt template instead of the default."
        ),
        "max_tokens": _prompt("-n", "--max-tokens", help="Maximum answer length, in tokens.", **_length),
        "ctx_size": _prompt(
            "--ctx-size", help="Context size in tokens; 0 is as much as needed, up to the model's.", **_length
        ),
        "on_overflow": _prompt(
            "--on-overflow",
            help="Too long input: stop, keep head and tail, or read it in parts and merge the answers.",
        ),
        "token_budget": _prompt(
            "--token-budget",
            help="Stop if the prompt has more tokens than this.",
            show_default=False,
            **_length,
        ),
        "think": _prompt("--think/--no-think", help="Ask a thinking model to think, or not to."),
        "think_tokens": _prompt(
            "--think-tokens",
            help="Maximum number of thinking tokens before the answer begins. By default half of -n.",
            show_default=False,
            **_length,
        ),
    },
    OriginSettings: {
        "sources": _origin(
            "--sources",
            min=1,
            max=MOST_SOURCES,
            metavar="[N]",
            help=f"Show the N most-attended passages (not evidence); {DEFAULT_SOURCES} without a number.",
            show_default=False,
        ),
        "cite": _origin(
            "--cite", help="Ask for quotations and look each one up, word for word, in the documents."
        ),
    },
    StoreSettings: {
        "off": _store(
            "--no-doc-cache",
            envvar="ADAMAS_NO_DOC_CACHE",
            help="Neither use kept documents nor keep these.",
        ),
        "read_only": _store("--doc-cache-ro", help="Use kept documents, but keep no new ones."),
        "limit": _store(
            "--doc-cache-size",
            help="Maximum size of all kept documents, in bytes such as 20g; by default 20g, or 10 % of the "
            "free disk if that is less.",
            show_default=False,
            **_length,
        ),
        "dtype": _store(
            "--doc-cache-dtype",
            help="Keep documents as computed, or in half the bytes, which changes answers slightly.",
        ),
    },
    OutputSettings: {
        "output": _output(
            "-o", "--output", metavar="FILE", help="Write the answer to a file; `-` is stdout."
        ),
        "json": _output("--json", help="Print JSON."),
        "hide_reasoning": _output("-R", "--hide-reasoning", help="Hide a thinking model's thoughts."),
        "usage": _output(
            "-u", "--usage/--no-usage", help="Show token counts and rates; the default on a terminal."
        ),
        "quiet": _output("--quiet", help="Show only the answer and errors."),
        "verbose": _output("-v", "--verbose", count=True, help="Show more notes; -vv adds tracebacks."),
    },
}

# Settings whose name differs from their field, because the class says what the field belongs to.
_NAMES: dict[type, dict[str, str]] = {
    StoreSettings: {
        "off": "no_doc_cache",
        "read_only": "doc_cache_ro",
        "limit": "doc_cache_size",
        "dtype": "doc_cache_dtype",
    }
}

# Flags that a command may also take without their group.
DenseLayers = Annotated[int, FLAGS[DecodingSettings]["dense_layers"]]
Backend = Annotated[BackendName, FLAGS[DecodingSettings]["backend"]]
System = Annotated[str | None, FLAGS[PromptSettings]["system"]]
TemplateFile = Annotated[str | None, FLAGS[PromptSettings]["template"]]
Offline = Annotated[bool, FLAGS[ModelSettings]["offline"]]
Think = Annotated[bool | None, FLAGS[PromptSettings]["think"]]
ThinkTokens = Annotated[int | None, FLAGS[PromptSettings]["think_tokens"]]

# Flags that belong to no group.
Questions = Annotated[
    list[str] | None,
    _prompt(
        "-q",
        "--question",
        metavar="TEXT",
        help="A question (repeatable); all arguments are then documents.",
    ),
]
Format = Annotated[
    Literal["md", "csv", "json", "jsonl"], _output("--format", help="How the figures are printed.")
]


@dataclass(frozen=True)
class SummaryPromptSettings(PromptSettings):
    """The settings of a summary, which covers everything that was given, however long."""

    on_overflow: OnOverflow = "map-reduce"


def all_names() -> frozenset[str]:
    """The names of the flags of all groups, such as `max_tokens`."""
    return frozenset(flag.name for group in FLAGS for flag in flags(group))


def setting_names() -> frozenset[str]:
    """The names that the configuration file may set."""
    return all_names() - _NOT_SETTINGS


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """A command for typer: parameters that are groups of settings are expanded into their flags."""
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
            name: group(**{field.name: values.pop(_name(group, field.name)) for field in fields(group)})
            for name, group in groups.items()
        }
        if isinstance(model := gathered.get("model"), ModelSettings):
            from adamas_cli.commands.which import one_file

            gathered["model"] = one_file(model)
        function(**gathered, **values)

    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    command.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return command


def flags(group: Any) -> list[inspect.Parameter]:
    """A group's flags as parameters for typer. A group of a single command, which is not in FLAGS, declares
    them in its own annotations.
    """
    hints = get_type_hints(group, include_extras=True)
    defaults = {field.name: field.default for field in fields(group)}
    known = next((FLAGS[above] for above in group.__mro__ if above in FLAGS), None)
    annotations = hints if known is None else {name: Annotated[hints[name], known[name]] for name in known}
    return [
        inspect.Parameter(
            _name(group, name),
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults[name],
            annotation=annotation,
        )
        for name, annotation in annotations.items()
    ]


def _name(group: type, field: str) -> str:
    """A field's name in the configuration file."""
    return _NAMES.get(group, {}).get(field, field)


def with_defaults(arguments: Sequence[str]) -> list[str]:
    """The command line, with a number added to `--sources` if it has none."""
    completed: list[str] = []
    options = True
    for index, word in enumerate(arguments):
        completed.append(word)
        options = options and word != "--"
        if options and word == "--sources" and not "".join(arguments[index + 1 : index + 2]).isdecimal():
            completed.append(str(DEFAULT_SOURCES))
    return completed
