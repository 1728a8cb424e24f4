"""Loads a model for answering."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import AdamasError, ModelUnavailableError, OutOfMemoryError, UsageError
from adamas_cli.heap import give_back
from adamas_cli.machine.cpu import cpu_level
from adamas_cli.machine.products import Products, known
from adamas_cli.machine.threads import use_threads
from adamas_cli.models.adapters import Adapter, merge
from adamas_cli.models.checkpoint.forms import Scheme, scheme_of
from adamas_cli.models.completeness import require_all
from adamas_cli.models.configs import read_config, reason, require_known_code
from adamas_cli.models.device import choose_device, choose_products
from adamas_cli.models.families import (
    auto_class,
    from_config,
    leave_only_text,
    model_type,
    require_answering,
)
from adamas_cli.models.folder import classes, is_usual, weight_files
from adamas_cli.models.prequantized import (
    holds_quantized,
    require_numbers,
    require_readable,
    stored_quantization,
)
from adamas_cli.models.quantization import (
    PACKAGES,
    PACKED,
    installed_packages,
    kept_as,
    packing_obstacle,
    packs,
    quantization_config,
    require_quantizable,
)
from adamas_cli.models.quiet import quiet_transformers
from adamas_cli.models.resolve import ModelFiles
from adamas_cli.models.shape import read_shape
from adamas_cli.models.stops import stop_ids
from adamas_cli.progress import Progress
from adamas_cli.ranks.mirror import LOADED, Mirrored

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from adamas_cli.models.filling import Placing
    from adamas_cli.models.split import Split
    from adamas_cli.ranks.team import Team

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel(Mirrored):
    """A model in memory, ready to answer."""

    model: PreTrainedModel  # in eval mode, without gradients
    files: ModelFiles
    device: torch.device
    dtype: torch.dtype
    context_length: int  # tokens
    stop_ids: tuple[int, ...]  # tokens that end an answer
    quantization: str = "none"  # how its weights were stored, and how they differ from those of its files
    in_bytes: bool = False  # whether many tokens' activations are rounded to 8 bits to meet packed weights
    team: Team | None = None
    number: int = LOADED


def load(
    files: ModelFiles,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    split: Split | None = None,
    progress: Progress,
) -> LoadedModel:
    """The model of `files` on `device`; weights in their own number format are mapped, not read.

    `quantization` is `packed`, `none` or `auto`, see `packs`, or a key of `quantization.PACKAGES`. `threads`:
    CPU threads, by default the physical cores. split: to load a rank's share, with all ranks at once. Raises
    UsageError if weights cannot be packed or quantized as asked, ModelUnavailableError if this version of
    transformers cannot load the model, OutOfMemoryError if it does not fit the device.
    """
    import torch

    require_answering(files.name, files.directory)
    chosen_device = choose_device(device)
    stored = stored_quantization(files.directory)
    scheme = None if stored is None else scheme_of(stored)
    in_blocks = files.gguf is not None or scheme is not None
    in_tensors = files.gguf is None and (scheme is not None or split is not None)
    packed = packs(
        quantization, dtype, chosen_device.type, packing_obstacle(chosen_device.type), in_blocks=in_blocks
    )
    products = choose_products(dtype, chosen_device, packed=packed, note=progress.note)
    if split is not None:
        products = split.ranks.agreed(products)
    chosen_dtype = _number(products)
    how = None
    if quantization in PACKAGES:
        require_quantizable(
            quantization,
            chosen_device.type,
            products.dtype,
            torch.cuda.get_device_capability(chosen_device) if chosen_device.type == "cuda" else None,
            installed_packages(),
        )
    if files.gguf is not None and quantization in PACKAGES:
        raise UsageError(f"{files.name} comes quantized: leave out `quantization` {quantization}.")
    if stored is not None:
        require_readable(files.name, stored, quantization, chosen_device.type)
    elif quantization in PACKAGES:
        how = quantization_config(quantization, chosen_dtype)
    context = read_shape(files.directory, trusts=trust_remote_code).context
    if files.gguf is None:
        require_numbers(files.name, files.directory)
    if chosen_device.type == "cpu":
        computing = use_threads(threads)
        if log.isEnabledFor(logging.INFO):
            progress.note(f"{computing} threads compute, in {products.dtype} (CPU level {cpu_level()})")
            if packed and dtype == "auto":
                progress.note(f"packed weights: products of {known()}")
    adapter = None if files.adapter is None else Adapter(files.adapter)
    if adapter is not None and quantization in PACKAGES:
        raise UsageError(f"an adapter is merged into numbers: leave out `quantization` {quantization}.")
    with progress.task(f"loading {files.name}", None, "bytes"), quiet_transformers():
        try:
            if files.gguf is not None:
                model = _read_gguf(
                    files, files.gguf, chosen_device, products, packed, adapter, progress, split
                )
            elif in_tensors:
                model = _read_tensors(
                    files,
                    scheme,
                    chosen_device,
                    products,
                    packed,
                    trust_remote_code,
                    adapter,
                    progress,
                    split,
                )
            else:
                model, loading = _read(files, chosen_device, chosen_dtype, trust_remote_code, how)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"{files.name} does not fit {chosen_device}.\nUse a smaller model, or `device` cpu."
            ) from error
    if not (in_blocks or in_tensors):
        require_all(files.name, loading, classes(files.directory), progress)
    leave_only_text(model)
    model.eval().requires_grad_(False)
    changed: frozenset[str] = frozenset()
    if adapter is not None and not in_blocks:
        changed = merge(model, adapter)
    quantized = stored is not None and scheme is None and holds_quantized(model)
    if quantized and quantization == PACKED:
        raise UsageError(f"{files.name} comes quantized and stays so: leave out `quantization` packed.")
    packed = packed and not quantized
    if packed and not in_blocks:
        from adamas_cli.models.file_rows import leave_in_file
        from adamas_cli.models.packed import pack_model

        pack_model(model, progress, in_bytes=products.in_bytes)
        leave_in_file(model, files.directory, changed)
        if next(model.parameters(), None) is None:  # transformers asks a parameter for device and format
            model.register_parameter("none_left", torch.nn.Parameter(torch.empty(0, dtype=chosen_dtype)))
    ending = stop_ids(model, files.directory, files.texts)
    if quantized:
        chosen_dtype = model.dtype  # some kinds compute in a single number format
    kept = kept_as(stored, quantization, quantized=quantized, packed=packed)
    give_back()  # a tokenizer and a file's keys take 0.1 GB to parse, and the first pass maps every weight
    in_bytes = packed and products.in_bytes
    return LoadedModel(model, files, chosen_device, chosen_dtype, context, ending, kept, in_bytes)


def _number(products: Products) -> torch.dtype:
    import torch

    found = getattr(torch, products.dtype)
    assert isinstance(found, torch.dtype)
    return found


def _read(
    files: ModelFiles, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, how: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and `from_pretrained`'s report of its tensors. how: its `quantization_config`, or None."""
    import transformers

    loader = getattr(transformers, auto_class(model_type(files.directory)))
    options = _placement(device)
    if how is not None:  # None would override the files' own
        options["quantization_config"] = how
    require_known_code(files.directory, trust_remote_code=trust_remote_code)
    with _unavailable_unless_read(files), warnings.catch_warnings():
        # For a model that comes quantized, this setting is added to its config, and does not replace it.
        warnings.filterwarnings("ignore", "You passed `quantization_config`")
        if not is_usual(files.directory):
            config = read_config(files.directory, trust_remote_code=trust_remote_code)
            return _of_tensors(files, config, _by_name(files.directory), dtype, trust_remote_code, options)
        model: PreTrainedModel
        model, loading = loader.from_pretrained(
            files.directory,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported later, more clearly than by the option's error
            **options,
        )
    return model, loading


def _read_gguf(
    files: ModelFiles,
    gguf: Path,
    device: torch.device,
    products: Products,
    packed: bool,
    adapter: Adapter | None,
    progress: Progress,
    split: Split | None,
) -> PreTrainedModel:
    """A model from a GGUF file; packed weights stay as they are in the file."""
    from adamas_cli.models.filling import Numbers
    from adamas_cli.models.gguf.file import GgufFile
    from adamas_cli.models.gguf_model import build_model

    dtype = _number(products)
    placing = _placing(products, device, progress, rounds=False) if packed else Numbers(dtype, device)
    with _merging(placing, adapter, exact=not packed) as merging:
        model = build_model(GgufFile(gguf), files.directory, dtype, device, merging, split)
    if packed:
        _tell(model, progress)
    return model


def _read_tensors(
    files: ModelFiles,
    scheme: Scheme | None,
    device: torch.device,
    products: Products,
    packed: bool,
    trust_remote_code: bool,
    adapter: Adapter | None,
    progress: Progress,
    split: Split | None,
) -> PreTrainedModel:
    """A model that comes quantized, whose packed weights stay in few bits, or a share of one in plain
    numbers.
    """
    from adamas_cli.models.checkpoint.source import build_model
    from adamas_cli.models.filling import Numbers

    require_known_code(files.directory, trust_remote_code=trust_remote_code)
    dtype = _number(products)
    in_blocks = packed and scheme is not None
    placing = _placing(products, device, progress, rounds=True) if in_blocks else Numbers(dtype, device)
    config = read_config(files.directory, trust_remote_code=trust_remote_code)
    with (
        _unavailable_unless_read(files),
        _merging(placing, adapter, exact=not packed) as merging,
    ):
        model = build_model(
            files.directory, config, scheme, dtype, device, merging,
            trust_remote_code=trust_remote_code, in_blocks=in_blocks,
            in_order=adapter is not None or split is not None, split=split,
        )  # fmt: skip
    if in_blocks:
        _tell(model, progress)
    return model


@contextmanager
def _merging(placing: Placing, adapter: Adapter | None, *, exact: bool) -> Iterator[Placing]:
    """A placing that merges the adapter, if there is one. Raises at the end if any part was not merged."""
    if adapter is None:
        yield placing
        return
    from adamas_cli.models.merging import Merging

    merging = Merging(placing, adapter, exact=exact)
    yield merging
    merging.require_all_merged()


def _placing(products: Products, device: torch.device, progress: Progress, *, rounds: bool) -> Placing:
    """How weights in blocks are kept on a device. rounds: see `Blocks`."""
    if device.type == "cpu":
        from adamas_cli.models.packed import Blocks

        return Blocks(progress, rounds=rounds, in_bytes=products.in_bytes)
    from adamas_cli.models.plane_linear import Planes

    return Planes(_number(products), device)


def _tell(model: PreTrainedModel, progress: Progress) -> None:
    """With `-v`, report which blocks a model's weights are in."""
    if log.isEnabledFor(logging.INFO):
        from adamas_cli.models.held import describe

        progress.note(describe(model))


def _of_tensors(
    files: ModelFiles,
    config: Any,
    weights: dict[str, torch.Tensor],
    dtype: torch.dtype,
    trust_remote_code: bool,
    options: dict[str, Any],
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model from named tensors in memory, and the report of loading them. options: of `from_pretrained`."""
    import torch
    from transformers import GenerationConfig

    with torch.device("meta"):  # to find its class; only that accepts weights that are not files
        blank = from_config(config, trust_remote_code=trust_remote_code)
    model: PreTrainedModel
    model, loading = type(blank).from_pretrained(
        None,
        config=blank.config,
        state_dict=weights,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    with suppress(OSError):  # a model need not have one
        model.generation_config = GenerationConfig.from_pretrained(files.directory, local_files_only=True)
    return model, loading


def _by_name(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of files without an index, mapped into memory."""
    from safetensors.torch import load_file

    return {name: tensor for file in weight_files(directory) for name, tensor in load_file(file).items()}


def _placement(device: torch.device) -> dict[str, Any]:
    """The `from_pretrained` options that put a model on a device."""
    return {} if device.type == "cpu" else {"device_map": {"": device}}


@contextmanager
def _unavailable_unless_read(files: ModelFiles) -> Iterator[None]:
    """Raise ModelUnavailableError for anything a library raises for files that it cannot load; out-of-memory
    errors are passed on.
    """
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, AdamasError):
        raise
    except Exception as error:
        if "DefaultCPUAllocator" in str(error):  # this error has no exception type of its own
            raise
        raise ModelUnavailableError(f"cannot load {files.name}: {reason(error)}") from error
