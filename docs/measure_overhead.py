"""What a decode step costs besides its arithmetic: a model of 24 layers so small that little else is left.

    python docs/measure_overhead.py [LAYERS] [CONTEXT]

Prints milliseconds per token: transformers' own forward, the engine in plain layers, and compiled steps.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from adamas_kernels.contract import SparseSettings
from torch import nn
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.bench.table import markdown_head, markdown_row
from adamas_cli.lab.hardware import device_name
from adamas_cli.machine.threads import use_threads
from adamas_cli.models.packed import pack_model
from adamas_cli.progress import Silent

STEPS = 100


@dataclass
class Loaded:
    """The part of a LoadedModel that the engine reads."""

    model: nn.Module
    in_bytes: bool = False


def main(layers: int = 24, context: int = 512) -> None:
    """Print the table."""
    use_threads(None)
    config = Qwen2Config(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = Qwen2ForCausalLM(config).bfloat16().eval().requires_grad_(False)
    ids = np.random.default_rng(0).integers(0, 256, context)
    rows = {"transformers": milliseconds(transformers_step(model, ids))}
    for name, settings in {"full": AttentionSettings("full"), "adamas": sparse()}.items():
        rows[f"engine, plain layers, {name}"] = milliseconds(engine_step(model, ids, settings))
    pack_model(model, Silent())
    for name, settings in {"full": AttentionSettings("full"), "adamas": sparse()}.items():
        rows[f"compiled steps, {name}"] = milliseconds(engine_step(model, ids, settings))
    print(f"{layers} layers of hidden size 64 after {context} tokens; {device_name(torch.device('cpu'))}\n")
    print(markdown_head(("step", "ms a token")))
    for name, found in rows.items():
        print(markdown_row((name, f"{found:.2f}")))


def sparse() -> AttentionSettings:
    """Adamas with a budget below the context."""
    return AttentionSettings("adamas", SparseSettings(budget=64))


def transformers_step(model: nn.Module, ids: np.ndarray) -> Callable[[], object]:
    """One token of transformers' forward."""
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.from_numpy(ids).unsqueeze(0), past_key_values=cache)

    def step() -> None:
        with torch.no_grad():
            int(model(torch.tensor([[1]]), past_key_values=cache).logits[0, -1].argmax())

    return step


def engine_step(model: nn.Module, ids: np.ndarray, settings: AttentionSettings) -> Callable[[], object]:
    """A sampled token of the engine."""
    timeline = Timeline(Loaded(model), settings, context=len(ids) + 2 * STEPS)  # type: ignore[arg-type]
    list(timeline.read(ids[:-1]))
    tokens = endless(timeline, ids)
    return lambda: next(tokens)


def endless(timeline: Timeline, ids: np.ndarray):  # type: ignore[no-untyped-def]
    """The events of one long answer."""
    from adamas_cli.engine.sampling import Sampling

    yield from timeline.answer(ids[-1:], Sampling(), 10**6, ())


def milliseconds(step: Callable[[], object]) -> float:
    """Median of STEPS steps, after warming up."""
    for _ in range(STEPS // 2):
        step()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
