"""Queries, keys and values of a model's layers while it decodes a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from adamas_kernels.contract import Backend, LayerCache, SparseSettings
from adamas_kernels.reference import Codebook
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.torch.backend import TorchBackend
from torch import Tensor

from adamas_cli.cache.layer import FULL, HYBRID
from adamas_cli.cache.mode import Sparse
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.bench.traces import Trace
from adamas_cli.models.shape import shape_of_config

if TYPE_CHECKING:
    from adamas_cli.lab.bench.pulse import Pulse
    from adamas_cli.models import LoadedModel

STEPS = 64  # recorded decode steps


class Recorder(TorchBackend):
    """A backend that records each layer's inputs and attends fully, so that the recording depends on no
    budget.

    No compiled steps or CUDA graphs exist for a backend of this name, so every step comes here.
    """

    name = "recorder"

    def __init__(self, coder: Backend) -> None:
        self._coder = coder
        self._given: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._layers: list[tuple[LayerCache, float, Softmax]] = []

    def encode_keys(self, keys: Tensor, codebook: Codebook, codes: Tensor, scales: Tensor) -> None:
        """See `Backend.encode_keys`; encodes like the backend that will replay."""
        self._coder.encode_keys(keys, codebook, codes, scales)

    def decode_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: LayerCache,
        scaling: float,
        settings: SparseSettings,
        tally: Tensor | None = None,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """Appends keys and values, but not their codes and their sum. The log-sum-exp is not computed but
        all NaN.
        """
        if id(cache) not in self._given:
            self._given[id(cache)] = []
            self._layers.append((cache, scaling, softmax))
        self._given[id(cache)].append((queries.clone(), keys.clone(), values.clone()))
        start = int(cache.length)
        end = start + keys.shape[2]
        cache.keys[:, :, start:end] = keys
        cache.values[:, :, start:end] = values
        seen = cache.keys[:, :, :end], cache.values[:, :, :end]
        out, _ = self.prefill(queries, *seen, scaling, softmax=softmax)
        return out, torch.full(queries.shape[:3], torch.nan, device=queries.device)

    def traces(self, context: int, numbers: list[int]) -> list[Trace]:
        """The recording after `context` tokens, by layer; numbers: of the layers in the model."""
        return [
            Trace(number, cache, context, *self._steps(cache), scaling, softmax)
            for number, (cache, scaling, softmax) in zip(numbers, self._layers, strict=True)
        ]

    def _steps(self, cache: LayerCache) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [T, 1, heads, 1, D] each."""
        queries, keys, values = (torch.cat(x, 2) for x in zip(*self._given[id(cache)], strict=True))
        split = [x.permute(2, 0, 1, 3).unsqueeze(3).contiguous() for x in (queries, keys, values)]
        return split[0], split[1], split[2]


def record(
    loaded: LoadedModel,
    ids: np.ndarray,
    steps: int,
    *,
    backend: Backend,
    settings: SparseSettings,
    dense_layers: int,
    chunk: int | None,
    pulse: Pulse,
) -> list[Trace]:
    """The traces of a model's sparse layers over the last `steps` of a text's tokens, int [n].

    All tokens before them are read with full attention, as `ask` reads a document. The last are
    teacher-forced: the model is fed the text's tokens, not its own. Empty if no layer is sparse.
    """
    context = len(ids) - steps
    attention = AttentionSettings("adamas", settings, dense_layers, backend.name)
    timeline = Timeline(loaded, attention, context=len(ids), prefill_chunk=chunk, graphs=False)
    recorder = Recorder(backend)
    timeline.use(Sparse(settings, recorder))
    for event in timeline.read(ids[:context]):
        pulse.beat("reading", event.done, event.total)
    timeline.score(ids[context:], sparse=True)
    layers = shape_of_config(loaded.model.config.get_text_config()).by_layer
    return recorder.traces(
        context,
        [
            index
            for index, layer in enumerate(layers)
            if layer.kind in (FULL, HYBRID) and layer.shares is None and index >= dense_layers
        ],
    )
