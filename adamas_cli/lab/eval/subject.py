"""The model to measure: everything that can be known, and be wrong, before its weights load."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from adamas_kernels.contract import Backend
from adamas_kernels.dispatch import load

from adamas_cli import __version__, models
from adamas_cli.engine.attention import backends_of
from adamas_cli.errors import OverContextError, UsageError
from adamas_cli.lab.eval.ledger import Record
from adamas_cli.lab.hardware import device_name
from adamas_cli.models.device import choose_device, usual_products
from adamas_cli.models.folder import CONFIG
from adamas_cli.progress import Progress
from adamas_cli.prompt.tokens import Tokenizer

if TYPE_CHECKING:
    from adamas_cli.settings import ModelSettings

DIGITS = 12  # of a sha256


@dataclass(frozen=True)
class Subject:
    """A model whose files are on this machine. backend: the one that `ask` would use for sparse steps."""

    files: models.ModelFiles
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype
    backend: str
    dense_layers: int
    options: ModelSettings

    @classmethod
    def find(cls, model: ModelSettings, backend: str, dense_layers: int, progress: Progress) -> Subject:
        """Raises ModelUnavailableError, and UsageError if the device, the backend or the number of dense
        layers is impossible.
        """
        if model.gpus > 1:
            raise UsageError("measurements of answers run on one GPU: leave out `gpus`.")
        device = choose_device(model.device)
        name, _ = backends_of(device).pick(backend)
        files = models.resolve(model.model, **model.finding, progress=progress)
        tokenizer = Tokenizer.of(files)
        products = usual_products(model.dtype, model.quantization, device, progress.note)
        dtype: torch.dtype = getattr(torch, products.dtype)
        found = cls(files, tokenizer, device, dtype, name, dense_layers, model)
        layers = found._config.get("num_hidden_layers")
        if isinstance(layers, int) and dense_layers >= layers:
            raise UsageError(f"`dense_layers` {dense_layers}: {files.name} has {layers}, so none is sparse")
        return found

    @property
    def settings(self) -> Record:
        """Every row's fields about the model and this machine."""
        return {
            "adamas": __version__,
            "model": self.files.name,
            "revision": self.files.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": device_name(self.device),
            "dense_layers": self.dense_layers,
        }

    def require(self, tokens: int, what: str) -> None:
        """Raises OverContextError if `what` needs more tokens than the model's context."""
        room = self._config.get("max_position_embeddings")
        if isinstance(room, int) and tokens > room:
            raise OverContextError(
                f"{what} need {tokens:,} tokens, and the context of {self.files.name} is {room:,}",
                n_prompt_tokens=tokens,
                n_ctx=room,
            )

    def load(self, progress: Progress) -> models.LoadedModel:
        """The model with its weights."""
        return models.load(self.files, **self.options.loading, progress=progress)

    def load_backend(self, announce: Callable[[str], None]) -> Backend:
        """The backend; announce: called before it compiles."""
        return load(self.backend, announce)

    @property
    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.files.directory / CONFIG).read_text(encoding="utf-8"))
        return config.get("text_config", config)
