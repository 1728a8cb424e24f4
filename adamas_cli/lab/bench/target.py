"""The model to measure: everything that is known, or can be refused, before its weights load."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adamas_cli import models
from adamas_cli.engine.shared import load_chosen, share
from adamas_cli.errors import OverContextError, UsageError
from adamas_cli.machine.threads import threads_for
from adamas_cli.models.aliases import aliases
from adamas_cli.models.configs import read_config
from adamas_cli.models.default import default_name
from adamas_cli.models.device import choose_device, choose_products, devices_of, require_gpus, usual_products
from adamas_cli.models.fetch import is_fetched, local_file
from adamas_cli.models.folder import CONFIG
from adamas_cli.models.quantization import PACKAGES, packing_obstacle, packs
from adamas_cli.models.split import require_splittable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from adamas_cli.progress import Progress
    from adamas_cli.settings import ModelSettings

Load = Callable[["Progress"], models.LoadedModel]


@dataclass(frozen=True)
class Target:
    """A model. context: tokens, None for any number. directory: its files, None for random weights. texts:
    files of its tokenizer. origin: what another process needs to load it again, as JSON. config: the
    transformers config.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    vocabulary: int
    context: int | None
    directory: Path | None
    texts: Path | None
    origin: dict[str, Any]
    load: Load
    config: Callable[[], PreTrainedConfig]

    @property
    def gguf(self) -> Path | None:
        """The GGUF file of its weights, if there is one."""
        file = self.origin.get("gguf")
        return None if file is None else Path(file)

    def require(self, tokens: int, what: str) -> None:
        """Raises OverContextError if `what` needs more tokens than the model can read."""
        if self.context is not None and tokens > self.context:
            raise OverContextError(
                f"{what} needs {tokens:,} tokens, and the context of {self.name} is {self.context:,}. "
                "Give less `len`.",
                n_prompt_tokens=tokens,
                n_ctx=self.context,
            )


def model_target(options: ModelSettings, progress: Progress) -> Target:
    """The model that the settings name. Raises ModelUnavailableError, UsageError."""
    require_gpus(options.device, options.gpus)
    device = choose_device(options.device)
    products = usual_products(options.dtype, options.quantization, device, progress.note)
    files = models.resolve(options.model, **options.finding, progress=progress)

    def load(progress: Progress) -> models.LoadedModel:
        return load_chosen(files, options, progress)

    def full_config() -> PreTrainedConfig:
        return read_config(files.directory, trust_remote_code=options.trust_remote_code)

    config: dict[str, Any] = json.loads((files.directory / CONFIG).read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    return Target(
        files.name,
        device,
        getattr(torch, products.dtype),
        config["vocab_size"],
        config.get("max_position_embeddings"),
        files.directory,
        files.texts,
        {
            "directory": str(files.directory),
            "gguf": None if files.gguf is None else str(files.gguf),
            "trust_remote_code": options.trust_remote_code,
        },
        load,
        full_config,
    )


def shape_target(name: str, tokens: int, options: ModelSettings, progress: Progress) -> Target:
    """A model of a shape with random weights and a context of `tokens`. Raises UsageError."""
    from adamas_cli.lab.bench.shapes import load_shape, shape_config, shape_fields, shape_share

    if options.quantization in PACKAGES:
        raise UsageError("`shape` has random weights, which are not quantized: leave out `quantization`")
    require_gpus(options.device, options.gpus)
    device = choose_device(options.device)
    packed = packs(
        options.quantization, options.dtype, device.type, packing_obstacle(device.type), in_blocks=False
    )
    products = choose_products(options.dtype, device, packed=packed, note=progress.note)
    dtype: torch.dtype = getattr(torch, products.dtype)

    def load(progress: Progress) -> models.LoadedModel:
        asked: dict[str, Any] = {
            "name": name, "context": tokens, "dtype": dtype, "in_bytes": products.in_bytes if packed else None
        }  # fmt: skip
        if options.gpus == 1:
            return load_shape(**asked, device=device, progress=progress)
        require_splittable(name, shape_config(name, tokens), options.gpus)
        devices = devices_of(options.device, options.gpus)
        asked |= {"devices": devices, "threads": threads_for(options.threads, options.gpus)}
        return share(devices, shape_share, asked, progress)

    origin = {"shape": name, "context": tokens}
    vocabulary = shape_fields(name)["vocab_size"]
    return Target(
        name, device, dtype, vocabulary, None, None, None, origin, load, lambda: shape_config(name, tokens)
    )


def gguf_file(options: ModelSettings) -> Path:
    """The GGUF file that the settings name. Raises UsageError if they name something else or it does not
    exist.
    """
    name = options.model or default_name(options.device)
    alias = aliases().get(name)
    if alias is not None:
        if is_fetched(alias):
            return local_file(alias)
        raise UsageError(f"`vs` llama.cpp reads the file of {name}. Run `adamas models pull {name}` once.")
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return path
    raise UsageError(f"`vs` llama.cpp needs a short name or a .gguf file with `model`, and {name} is neither")
