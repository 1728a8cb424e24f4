"""A calibration: two layers of the model's shape with random weights read and answer briefly, in the same
engine that will run all layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Done
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.forecast.speed import Decoding, Reading
from adamas_cli.machine.threads import use_threads
from adamas_cli.models import LoadedModel, ModelFiles
from adamas_cli.models.configs import read_config
from adamas_cli.models.quiet import quiet_transformers
from adamas_cli.models.shape import WeightCount, shape_of_config

if TYPE_CHECKING:
    from adamas_cli.planning.decision import Decision
    from adamas_cli.progress import Progress

LAYERS, VOCABULARY = 2, 1024
# Exceptions of transformers if fields of a config contradict each other.
_UNCUT = (AttributeError, IndexError, KeyError, TypeError, ValueError)
_WARM_UP, _CHUNKS, _WARM_UP_STEPS, _STEPS = 64, 2, 2, 16  # tokens, or chunks of them


def calibrate(
    files: ModelFiles,
    count: WeightCount,
    decision: Decision,
    *,
    attention: AttentionSettings,
    threads: int | None,
    trust_remote_code: bool,
    progress: Progress,
) -> tuple[list[Reading], list[Decoding]] | None:
    """Timings of the whole model on this CPU, extrapolated from a few layers; None, with a note, if its
    config cannot be cut to that few. attention: the settings for these layers.
    """
    use_threads(threads)
    config = read_config(files.directory, trust_remote_code=trust_remote_code).get_text_config()
    layers = config.num_hidden_layers
    try:
        loaded = _few_layers(config, decision, progress)
    except _UNCUT as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        progress.note(
            f"no times before the first answer: a model of {LAYERS} layers cannot be built ({reason})"
        )
        return None
    chunk = decision.attention.chunk
    read = _WARM_UP + _CHUNKS * chunk
    tokens = np.arange(read) % VOCABULARY
    timeline = Timeline(loaded, attention, context=read + _STEPS + 1, prefill_chunk=chunk)
    for _ in timeline.read(tokens[:_WARM_UP]):
        pass
    scale = layers / LAYERS
    readings = []
    begun, seconds = _WARM_UP, 0.0
    for event in timeline.read(tokens[_WARM_UP:]):
        if event.done > begun:
            readings.append(Reading(begun, event.done, (event.seconds - seconds) * scale))
            begun, seconds = event.done, event.seconds
    for steps in (_WARM_UP_STEPS, _STEPS):
        *_, done = timeline.answer(tokens[:1], Sampling(), steps, ())
    assert isinstance(done, Done)
    # Decoding time follows the bytes of weights: the matrix after the last layer counts as one more.
    behind = 1 + count.head / max(1, count.matrices)
    return readings, [Decoding(read, _STEPS - 1, done.decode_seconds * scale * behind)]


def _few_layers(config: PreTrainedConfig, decision: Decision, progress: Progress) -> LoadedModel:
    dtype: torch.dtype = getattr(torch, decision.dtype)
    fewer: dict[str, Any] = {"num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}
    for name, value in fewer.items():
        setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:LAYERS]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, None)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    if decision.packed:
        from adamas_cli.models.packed import pack_model

        pack_model(model, progress, in_bytes=decision.in_bytes)
    context = shape_of_config(config).context
    return LoadedModel(model, ModelFiles("", Path(), ""), torch.device("cpu"), dtype, context, ())
