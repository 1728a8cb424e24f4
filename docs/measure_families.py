"""Decode rates of models of real widths with random weights on a GPU, beside the memory's speed.

    python docs/measure_families.py [FAMILY ...] [--len 4k,16k] [-n 128] [--layers N] [--json]

A family is a name in FAMILIES; by default, all are measured. Nothing is downloaded: weights are random, those
of `bits` in planes, and so are tokens. A row is tokens/s of answers after a document, and the share of a
device copy's speed at which a token reads the bytes it needs. If a model has fewer layers than its family,
the rate of all layers is extrapolated from two models that differ by one period of layers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from adamas_kernels.triton.backend import TritonBackend
from adamas_kernels.triton.planes import PlaneWeight, split
from adamas_kernels.triton.unpacking import unpack_rows
from measure_gpu_products import some_blocks
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from adamas_cli.commands.bench.shared import parse_lengths
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.bench.clock import copy_bandwidth_apart
from adamas_cli.lab.bench.document import random_document
from adamas_cli.lab.bench.measurement import Measurement
from adamas_cli.lab.bench.model import ModelBench, tokens_needed
from adamas_cli.lab.bench.table import print_rows
from adamas_cli.lab.hardware import device_name
from adamas_cli.models import LoadedModel, ModelFiles
from adamas_cli.models.filling import compute_buffers
from adamas_cli.models.plane_experts import PlaneExperts
from adamas_cli.models.plane_linear import PlaneLinear
from adamas_cli.models.shape import shape_of_config
from adamas_cli.models.stacked_experts import WEIGHTS, can_pack, widths

DEVICE, DTYPE = torch.device("cuda"), torch.bfloat16
DEVIATION = 0.02  # standard deviation of weights
DISTINCT = 256  # rows of a random low-bit weight, repeated in random order
SPARE = 64  # tokens between the longest document and the context
REPEATS = 3
EXPERTS, LINEARS, HEAD = "experts", "linears", "head"
Row = dict[str, object]


@dataclass(frozen=True)
class Family:
    """model_type and fields: of the config. layers: of the model; built: how many are built. period: the
    number of layers after which their kinds repeat. bits: the types of EXPERTS, LINEARS and HEAD weights that
    are not plain numbers.
    """

    model_type: str
    fields: dict[str, Any]
    layers: int
    built: int
    period: int = 1
    bits: dict[str, str] = field(default_factory=dict)


FOUR_BITS = {EXPERTS: "Q4_K", LINEARS: "Q4_K", HEAD: "Q6_K"}
FAMILIES = {
    "qwen3-30b-a3b": Family(
        "qwen3_moe",
        {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "norm_topk_prob": True,
        },
        layers=48,
        built=48,
        bits=FOUR_BITS,
    ),
    "gemma3-4b": Family(
        "gemma3_text",
        {
            "vocab_size": 262208,
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 1024,
        },
        layers=34,
        built=34,
    ),
    "gpt-oss-20b": Family(
        "gpt_oss",
        {
            "vocab_size": 201088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "sliding_window": 128,
        },
        layers=24,
        built=8,
        period=2,
        bits={EXPERTS: "MXFP4"},
    ),
    "qwen3-next-80b": Family(
        "qwen3_next",
        {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 5120,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
        },
        layers=48,
        built=8,
        period=4,
        bits={EXPERTS: "Q4_K"},
    ),
}


def random_planes(kind: str, rows: int, columns: int) -> PlaneWeight:
    """A weight whose numbers have the usual standard deviation."""
    few = split(some_blocks(kind, DISTINCT, columns), DEVICE)
    assert isinstance(few, PlaneWeight)
    numbers = torch.empty(DISTINCT, columns, dtype=torch.float32, device=DEVICE)
    unpack_rows(few, numbers)
    (few.scales if few.units is None else few.units).mul_(DEVIATION / numbers.std())
    which = torch.randint(DISTINCT, (rows,), device=DEVICE)
    return replace(few, **{name: plane[which] for name, plane in few.planes.items()})


def random_model(family: Family, layers: int, context: int) -> LoadedModel:
    """A family's model with this many layers and room for a context."""
    config = AutoConfig.for_model(
        family.model_type, **family.fields, num_hidden_layers=layers, max_position_embeddings=context,
        tie_word_embeddings=HEAD not in family.bits,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
    backend, head = TritonBackend(), model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if can_pack(module) and EXPERTS in family.bits:
            model.set_submodule(name, random_experts(module, family.bits[EXPERTS], backend))
        elif type(module) is nn.Linear and (kind := family.bits.get(HEAD if module is head else LINEARS)):
            weight = random_planes(kind, module.out_features, module.in_features)
            model.set_submodule(name, PlaneLinear(weight, None, backend))
    fill(model)
    compute_buffers(model, DEVICE)
    files = ModelFiles(family.model_type, Path(), "")
    return LoadedModel(model.eval().requires_grad_(False), files, DEVICE, DTYPE, context, ())


def random_experts(source: Any, kind: str, backend: TritonBackend) -> PlaneExperts:
    """Random experts for a module without memory."""
    (hidden, inner), count = widths(source), source.num_experts
    fill(source, without=WEIGHTS)
    gate_up = random_planes(kind, count * 2 * inner, hidden)
    return PlaneExperts(source, [gate_up], random_planes(kind, count * hidden, inner), backend)


def fill(model: nn.Module, without: Collection[str] = ()) -> None:
    """Allocate and fill parameters: matrices with random numbers, biases with zeros, all others with ones."""
    filled: dict[int, nn.Parameter] = {}  # shared ones stay shared
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_meta or name in without:
                continue
            if id(parameter) not in filled:
                numbers = torch.full(parameter.shape, float("bias" not in name), dtype=DTYPE, device=DEVICE)
                if parameter.dim() > 1 and "bias" not in name:
                    numbers.normal_(std=DEVIATION)
                filled[id(parameter)] = nn.Parameter(numbers, requires_grad=False)
            module._parameters[name] = filled[id(parameter)]


def decodes(
    family: Family, layers: int, lengths: Sequence[int], generated: int
) -> dict[tuple[int, str], Measurement]:
    """Answers with this many layers, by document length and kind of attention."""
    context = tokens_needed(max(lengths), generated) + SPARE
    loaded = random_model(family, layers, context)
    config = loaded.model.config.get_text_config()
    kind = "full" if shape_of_config(config).obstacle else "adamas"
    attention = AttentionSettings(kind, budget_by_context=True)
    reason = Timeline(loaded, attention, context=context).step_reason
    say(f"{family.model_type}, {layers} layers: {reason or 'steps are captured'}")
    document = random_document(config.vocab_size, context)
    bench = ModelBench(loaded, attention, document, generated, REPEATS, None, say)
    return {(row.length, row.attention): row for row in bench.measure(lengths) if row.generated}


def measure(name: str, lengths: Sequence[int], generated: int, layers: int | None) -> Iterator[Row]:
    """The rows of a family; layers: how many to build, None for the family's own number."""
    family, copy = FAMILIES[name], copy_bandwidth_apart(DEVICE)
    built = layers or family.built
    found = decodes(family, built, lengths, generated)
    less = decodes(family, built - family.period, lengths, generated) if built < family.layers else {}
    for key, row in found.items():
        seconds = whole = 1 / row.rate
        if key in less:
            whole += (seconds - 1 / less[key].rate) / family.period * (family.layers - built)
        assert row.step_bytes is not None
        yield {
            "family": name, "layers": built, "document": row.length, "attention": row.attention,
            "budget": row.budget, "tokens_per_s": round(row.rate, 1),
            "of_copy": round(row.step_bytes * row.rate / copy, 3), "all_layers": family.layers,
            "all_layers_tokens_per_s": round(1 / whole, 1),
            "peak_memory_gb": round(row.peak_memory_bytes / 1e9, 1),
        }  # fmt: skip


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", choices=[*FAMILIES, []], metavar="FAMILY")
    parser.add_argument("--len", dest="lengths", default="4k,16k")
    parser.add_argument("-n", dest="generated", type=int, default=128)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--json", action="store_true", help="a line for each row")
    options = parser.parse_args()
    lengths = parse_lengths(options.lengths)
    print(f"{device_name(DEVICE)}, torch {torch.__version__}", file=sys.stderr)
    torch.manual_seed(0)
    rows = (
        row
        for name in options.families or FAMILIES
        for row in measure(name, lengths, options.generated, options.layers)
    )
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
