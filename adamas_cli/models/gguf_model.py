"""The model in a GGUF file: its parameters by transformers' names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from adamas_kernels.blocks import BlockWeight
from transformers import AutoConfig

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.filling import Placing, fill, without_memory
from adamas_cli.models.folder import CONFIG
from adamas_cli.models.gguf.architectures import architecture_of
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.llama_like import LlamaLike, serves

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adamas_cli.models.gguf.stored import Stored
    from adamas_cli.models.split import Split


def build_model(
    file: GgufFile,
    directory: Path,
    dtype: torch.dtype,
    device: torch.device,
    placing: Placing,
    split: Split | None = None,
) -> PreTrainedModel:
    """The model in `file`, whose settings are in `directory`; see `fill`. split: to build a rank's share.

    Raises ModelUnavailableError if the file lacks a tensor, or has one that the model does not.
    """
    source = GgufSource(file, directory)

    def build() -> PreTrainedModel:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        if split is not None:
            config = split.config(config)
        elif device.type == "cpu" and serves(config):
            return cast("PreTrainedModel", LlamaLike(config, dtype))
        from transformers import AutoModelForCausalLM

        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return model

    model = without_memory(build, file.path, "keys")
    if split is None:
        fill(model, source, dtype, device, placing)
    else:
        split.fill(model, source, dtype, device, placing)
    return model


class GgufSource:
    """See `filling.Source`."""

    def __init__(self, file: GgufFile, directory: Path) -> None:
        self.path = file.path
        self._file, self._architecture = file, architecture_of(file)
        self._config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))

    def stored(self, name: str) -> Stored:
        """See `Source.stored`."""
        try:
            return self._architecture.stored(name, self._file, self._config)
        except ModelUnavailableError as error:
            raise ModelUnavailableError(f"cannot use {self.path}: {error.message}.") from error

    def place(self, name: str) -> tuple[Path, int] | None:
        """See `Source.place`."""
        tensor = self._architecture.plain_name(name, self._file)
        return None if tensor is None else self._file.place(tensor)

    def experts(self, module: str) -> tuple[Sequence[BlockWeight], BlockWeight] | None:
        """See `Source.experts`."""
        names = self._architecture.expert_tensors(module, self._file)
        if names is None:
            return None
        gate, up, down = (self._file.tensor(name).block_weight for name in names)
        return (gate, up), down

    def require_all_used(self) -> None:
        """See `Source.require_all_used`."""
        surplus = self._architecture.surplus(self._file, self._config["num_hidden_layers"])
        if surplus:
            raise ModelUnavailableError(
                f"cannot use {self.path}: it has the tensor {surplus[0]}, unknown for its "
                f"architecture {self._file.architecture}."
            )
