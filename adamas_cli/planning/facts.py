"""The facts for a decision, gathered before weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.machine.backends import backend_obstacles
from adamas_cli.machine.gpus import Gpu, gpus
from adamas_cli.machine.products import known
from adamas_cli.models.device import device_kind, multiplies_bfloat16
from adamas_cli.models.families import require_answering
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.prequantized import block_bytes, require_numbers, stored_bytes, stored_quantization
from adamas_cli.models.quantization import installed_packages, packing_obstacle
from adamas_cli.models.shape import (
    WeightCount,
    count_tensors,
    count_weights,
    read_shape,
    shape_of_config,
)
from adamas_cli.planning.decision import Backends, Machine, Model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from adamas_cli.models import ModelFiles


def machine_facts(device: str) -> Machine:
    """The facts of `auto` or a named device, without torch if possible."""
    from adamas_cli.machine.memory import memory

    kind = device_kind(device)
    gpu = _gpu(device) if kind == "cuda" else None
    host = memory().available
    available = host if kind != "cuda" else gpu.memory if gpu else 0
    return Machine(
        Backends(kind, backend_obstacles(kind, gpu.capability if gpu else None)),
        bfloat16=multiplies_bfloat16(kind),
        packing=packing_obstacle(kind),
        memory=available,
        capability=gpu.capability if gpu else None,
        installed=installed_packages(),
        products=known().products if kind == "cpu" else None,
        host=host if kind == "cuda" else 0,
    )


def file_facts(files: ModelFiles, *, trusts: bool = False) -> Model:
    """The facts of a model from its files alone, without torch if they suffice. trusts: code in its folder.
    Raises ModelUnavailableError if they do not, and for a model that cannot answer.
    """
    require_answering(files.name, files.directory)
    shape = read_shape(files.directory, trusts=trusts)
    if files.gguf is None:
        require_numbers(files.name, files.directory)
    return Model(
        shape,
        _count(files),
        stored_quantization(files.directory),
        stored_bytes(files.directory),
        _blocks(files.directory, files.gguf),
    )


def config_facts(config: PreTrainedConfig, directory: Path | None, gguf: Path | None = None) -> Model:
    """The facts of a model as transformers builds it from a config, which needs torch. directory: its files,
    if any; gguf: the file of its weights. Raises ModelUnavailableError if the config is incomplete.
    """
    from adamas_cli.models.parameters import count_parameters

    text = config.get_text_config()
    try:
        shape = shape_of_config(text)
    except KeyError as error:
        raise ModelUnavailableError(f"the model's config lacks {error}") from error
    stored = None if directory is None else stored_quantization(directory)
    size = None if directory is None else stored_bytes(directory)
    return Model(shape, count_parameters(config), stored, size, _blocks(directory, gguf))


def _blocks(directory: Path | None, gguf: Path | None) -> int | None:
    if gguf is not None:
        return GgufFile(gguf).bytes
    return None if directory is None else block_bytes(directory)


def _count(files: ModelFiles) -> WeightCount:
    if files.gguf is None:
        return count_weights(files.directory)
    return count_tensors(GgufFile(files.gguf).shapes())


def _gpu(device: str) -> Gpu | None:
    """The GPU of this torch name; None if there is none."""
    index = device.partition(":")[2] or "0"
    there = gpus()
    return there[int(index)] if index.isdecimal() and int(index) < len(there) else None
