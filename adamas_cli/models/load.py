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
from adamas_cli.machine.threads import use_threads
from adamas_cli.models.adapters import Adapter, merge
from adamas_cli.models.completeness import require_all
from adamas_cli.models.configs import read_config, reason, require_known_code
from adamas_cli.models.device import choose_device, choose_dtype
from adamas_cli.models.folder import classes, is_usual, weight_files
from adamas_cli.models.grids import Grid, read_weights
from adamas_cli.models.prequantized import (
    grid_to_dequantize,
    holds_quantized,
    reading,
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
from adamas_cli.models.rotary import context_of
from adamas_cli.models.stops import stop_ids
from adamas_cli.progress import Progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, ready to answer."""

    model: PreTrainedModel  # in eval mode, without gradients
    files: ModelFiles
    device: torch.device
    dtype: torch.dtype
    context_length: int  # tokens
    stop_ids: tuple[int, ...]  # tokens that end an answer
    quantization: str = "none"  # how its weights came, and how they differ from those of its files


def load(
    files: ModelFiles,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress,
) -> LoadedModel:
    """The model of `files` on `device`; weights in their own number format are mapped, not read,
    but for those on a grid.

    `quantization` is `packed`, `none` or `auto`, see `packs`, or a way of `quantization.PACKAGES`; a model
    that comes quantized is packed where it could be dequantized. `threads` compute on a CPU, by default its
    physical cores. Raises UsageError where weights cannot be packed or quantized so, ModelUnavailableError if
    this version of transformers cannot load the model, OutOfMemoryError if it does not fit the device.
    """
    import torch

    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    packed = packs(
        quantization,
        dtype,
        chosen_device.type,
        packing_obstacle(chosen_device.type),
        in_blocks=files.gguf is not None,
    )
    how = grid = None
    if quantization in PACKAGES:
        require_quantizable(
            quantization,
            chosen_device.type,
            str(chosen_dtype).removeprefix("torch."),
            torch.cuda.get_device_capability(chosen_device) if chosen_device.type == "cuda" else None,
            installed_packages(),
        )
    if files.gguf is not None and quantization in PACKAGES:
        raise UsageError(f"{files.name} comes quantized: leave out `quantization` {quantization}.")
    if (stored := stored_quantization(files.directory)) is not None:
        require_readable(files.name, stored, quantization)
        how, grid = reading(stored, chosen_device, progress), grid_to_dequantize(stored)
    elif quantization in PACKAGES:
        how = quantization_config(quantization, chosen_dtype)
    if chosen_device.type == "cpu":
        computing = use_threads(threads)
        if log.isEnabledFor(logging.INFO):
            progress.note(f"{computing} threads compute, in {str(chosen_dtype).removeprefix('torch.')}")
    adapter = None if files.adapter is None else Adapter(files.adapter)
    if adapter is not None and quantization in PACKAGES:
        raise UsageError(f"an adapter is merged into numbers: leave out `quantization` {quantization}.")
    with progress.task(f"loading {files.name}", None, "bytes"), quiet_transformers():
        try:
            if files.gguf is not None:
                model = _read_gguf(files, files.gguf, chosen_device, chosen_dtype, packed, adapter, progress)
            elif grid is not None:
                model, loading = _read_grid(files, chosen_device, chosen_dtype, trust_remote_code, grid)
            else:
                model, loading = _read(files, chosen_device, chosen_dtype, trust_remote_code, how)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"{files.name} does not fit {chosen_device}.\nUse a smaller model, or `device` cpu."
            ) from error
    if files.gguf is None:
        require_all(files.name, loading, classes(files.directory), progress)
    model.eval().requires_grad_(False)
    changed: frozenset[str] = frozenset()
    if adapter is not None and files.gguf is None:
        changed = merge(model, adapter)
    quantized = stored is not None and holds_quantized(model)
    if quantized and quantization == PACKED:
        raise UsageError(f"{files.name} comes quantized and stays so: leave out `quantization` packed.")
    packed = packed and not quantized
    if packed and files.gguf is None:
        from adamas_cli.models.file_rows import leave_in_file
        from adamas_cli.models.packed import pack_model

        pack_model(model, progress)
        leave_in_file(model, files.directory, changed)
    text = model.config.get_text_config()
    context = context_of(lambda name: getattr(text, name, None))
    if context is None:
        raise ModelUnavailableError(f"{files.name} does not say how many tokens it can read.")
    ending = stop_ids(model, files.directory, files.texts)
    if stored is not None:
        chosen_dtype = model.dtype  # some kinds compute in one number format only
    kept = kept_as(stored, quantization, quantized=quantized, packed=packed)
    return LoadedModel(model, files, chosen_device, chosen_dtype, context, ending, kept)


def _read(
    files: ModelFiles, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, how: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what `from_pretrained` reports of its tensors. how: what it takes as
    `quantization_config`, or None.
    """
    from transformers import AutoModelForCausalLM

    options = _placement(device)
    if how is not None:  # a None would overrule what the files say
        options["quantization_config"] = how
    require_known_code(files.directory, trust_remote_code=trust_remote_code)
    with _unavailable_unless_read(files), warnings.catch_warnings():
        # How a model that comes quantized is to be read goes beside its own config, not instead of it.
        warnings.filterwarnings("ignore", "You passed `quantization_config`")
        if not is_usual(files.directory):
            config = read_config(files.directory, trust_remote_code=trust_remote_code)
            return _of_tensors(files, config, _by_name(files.directory), dtype, trust_remote_code, options)
        model: PreTrainedModel
        model, loading = AutoModelForCausalLM.from_pretrained(
            files.directory,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told, which is better than an error about the option
            **options,
        )
    return model, loading


def _read_gguf(
    files: ModelFiles,
    gguf: Path,
    device: torch.device,
    dtype: torch.dtype,
    packed: bool,
    adapter: Adapter | None,
    progress: Progress,
) -> PreTrainedModel:
    """A model whose weights are in a GGUF file, which stay as they are there where they are packed."""
    from adamas_cli.models.gguf.file import GgufFile
    from adamas_cli.models.gguf.loading import Numbers, Placing, build_model

    placing: Placing = Numbers(dtype, device)
    if packed and device.type == "cpu":
        from adamas_cli.models.packed import Blocks

        placing = Blocks(progress)
    elif packed:
        from adamas_cli.models.plane_linear import Planes

        placing = Planes(dtype, device)
    if adapter is None:
        model = build_model(GgufFile(gguf), files.directory, dtype, device, placing)
    else:
        from adamas_cli.models.gguf.merging import Merging

        merging = Merging(placing, adapter, exact=not packed)
        model = build_model(GgufFile(gguf), files.directory, dtype, device, merging)
        merging.require_all_merged()
    if packed and device.type == "cpu" and log.isEnabledFor(logging.INFO):
        from adamas_cli.models.packed import describe

        progress.note(describe(model))
    return model


def _read_grid(
    files: ModelFiles, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, grid: Grid
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model that comes as AWQ or GPTQ, with numbers as weights, and what is reported of its tensors."""
    config = read_config(files.directory, trust_remote_code=trust_remote_code)
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    with _unavailable_unless_read(files):
        weights = read_weights(files.directory, grid, dtype, device)
        return _of_tensors(files, config, weights, dtype, trust_remote_code, _placement(device))


def _of_tensors(
    files: ModelFiles,
    config: Any,
    weights: dict[str, torch.Tensor],
    dtype: torch.dtype,
    trust_remote_code: bool,
    options: dict[str, Any],
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model of tensors in memory by their names, and what is reported of them. options: of
    `from_pretrained`.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    with torch.device("meta"):  # for its class, which alone takes weights that are no files
        blank = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
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
    """The tensors of files that no index lists, mapped into memory."""
    from safetensors.torch import load_file

    return {name: tensor for file in weight_files(directory) for name, tensor in load_file(file).items()}


def _placement(device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` takes to put a model on a device."""
    return {} if device.type == "cpu" else {"device_map": {"": device}}


@contextmanager
def _unavailable_unless_read(files: ModelFiles) -> Iterator[None]:
    """Raise ModelUnavailableError for whatever a library raises of files that it cannot make a model of; a
    lack of memory is passed on.
    """
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, AdamasError):
        raise
    except Exception as error:
        if "DefaultCPUAllocator" in str(error):  # which has no exception type of its own
            raise
        raise ModelUnavailableError(f"cannot load {files.name}: {reason(error)}") from error
