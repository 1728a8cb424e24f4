"""A decode step of families of models on a CPU: compiled, through transformers' layers, and its own.

    python docs/measure_steps.py [FAMILY ...] [--len 4k] [--rounds 20] [--threads N]

Models have a few layers of real widths with random weights, packed as in the product. Ways take turns in one
process, and the fastest step of each counts, so that other work on the machine has little effect. Columns
are milliseconds per token: compiled steps with sparse and with full attention, the same packed model through
transformers' layers, and transformers' own forward in the number format that the product would choose; then
how much faster compiled full steps are than these two.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from adamas_cli.cache.mode import Mode
from adamas_cli.commands.bench.shared import parse_lengths
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.steps.compiled import compiled_obstacle
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.bench.table import markdown_head, markdown_row
from adamas_cli.lab.hardware import device_name
from adamas_cli.machine.threads import use_threads
from adamas_cli.models import LoadedModel, ModelFiles
from adamas_cli.models.device import choose_dtype
from adamas_cli.models.packed import pack_model
from adamas_cli.models.quiet import quiet_transformers
from adamas_cli.models.shape import shape_of_config
from adamas_cli.progress import Silent

CPU = torch.device("cpu")
STEPS = 3  # of each way before the next one's turn
SPARE = 4096  # tokens that the longest measurement may write
VOCABULARY = 8192
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "sliding_window": None,
    "moe_intermediate_size": 768, "num_experts": 16, "num_local_experts": 16, "num_experts_per_tok": 4,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 1024}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": WINDOWS | {"head_dim": 128, "num_attention_heads": 8},
    "cohere2": WINDOWS,
    "phi3": {},
    "olmo2": {},
    "granite": {},
    "glm4": {},
    "stablelm": {},
    "gpt_oss": WINDOWS | {"intermediate_size": 768},
    "mixtral": {"intermediate_size": 768},
    "qwen3_moe": {},
}
Step = Callable[[], object]


@dataclass(frozen=True)
class Family:
    """The same random weights twice: packed, and as in transformers."""

    packed: LoadedModel
    plain: nn.Module


def build(name: str, context: int, dtype: torch.dtype) -> Family:
    """A family's models."""
    config = AutoConfig.for_model(name, **(COMMON | FAMILIES[name]), max_position_embeddings=context)
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        with quiet_transformers():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        made.append(model.eval().requires_grad_(False))
    pack_model(made[0], Silent())
    return Family(LoadedModel(made[0], ModelFiles(name, Path(), ""), CPU, dtype, context, ()), made[1])


def ways(family: Family, tokens: int) -> Iterator[tuple[str, Step]]:
    """Steps after this many tokens, by what computes them."""
    document = np.random.default_rng(0).integers(0, VOCABULARY, tokens)
    sparse = Timeline(family.packed, AttentionSettings("adamas"), context=tokens + SPARE)
    list(sparse.read(document))
    full, layers = sparse.fork(), sparse.fork()
    reason = compiled_obstacle(full.model, full.cache)
    assert reason is None, reason
    yield "compiled, sparse", lambda: sparse.score(document[:1], sparse=True)
    yield "compiled, full", lambda: full.score(document[:1], sparse=False)
    one = torch.tensor([1])
    yield "layers", lambda: layers.model.forward(one, layers.cache, Mode())
    yield "transformers", plain_step(family.plain, tokens)


def plain_step(model: Any, tokens: int) -> Step:
    """A step of transformers' own, with random tokens in its cache."""
    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(shape_of_config(model.config).by_layer):
        key, value = (
            torch.randn(1, layer.kv_heads, tokens, dim, dtype=model.dtype)
            for dim in (layer.key_dim, layer.value_dim)
        )
        cache.update(key, value, index)

    @torch.no_grad()
    def step() -> None:
        model(torch.tensor([[1]]), past_key_values=cache, use_cache=True)

    return step


def fastest(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Milliseconds of the fastest step of each way."""
    found = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, step in steps.items():
            for _ in range(STEPS):
                start = time.perf_counter()
                step()
                found[name] = min(found[name], 1e3 * (time.perf_counter() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--len", dest="length", default="4k")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    (tokens,) = parse_lengths(options.length)
    threads, dtype = use_threads(options.threads), choose_dtype("auto", CPU)
    print(f"{tokens:,} tokens; {device_name(CPU)}, {threads} threads, {dtype}\n")
    first = True
    for name in options.families or FAMILIES:
        found = fastest(dict(ways(build(name, tokens + SPARE, dtype), tokens)), options.rounds)
        ratios = [f"{found[way] / found['compiled, full']:.1f}" for way in ("layers", "transformers")]
        if first:
            print(markdown_head(("family", *found, "over layers", "over transformers")))
        print(markdown_row((name, *(f"{value:.2f}" for value in found.values()), *ratios)), flush=True)
        first = False


if __name__ == "__main__":
    main()
