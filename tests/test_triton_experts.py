"""Experts in planes, against their numbers: in Triton's interpreter here, natively with `-m gpu`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adamas_kernels.blocks import unpack
from adamas_kernels.triton import unpacking
from adamas_kernels.triton.backend import FEW_READS, TritonBackend
from adamas_kernels.triton.experts import Experts, Gate, add_chosen
from adamas_kernels.triton.grouped import Grouping, add_grouped
from adamas_kernels.triton.plane_product import Tiling
from adamas_kernels.triton.planes import FORMS, PlaneWeight, halves, split, take_turns
from block_weights import some_blocks
from gguf import GGMLQuantizationType
from gguf_sources import VOCABULARY, build
from gguf_writing import write_source
from torch import Tensor

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.models import LoadedModel, ModelFiles
from adamas_cli.models.filling import Numbers, Placing
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.gguf.settings import config_of
from adamas_cli.models.gguf_model import build_model
from adamas_cli.models.plane_experts import PlaneExperts, known_gate
from adamas_cli.models.plane_linear import Planes
from adamas_cli.models.stacked_experts import can_pack
from adamas_cli.progress import Silent

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
EPSILON = {HALF: 2e-3, BRAIN: 1.6e-2, FULL: 2e-6}
COUNT, OUT = 3, 19
CLAMPED = Gate(limit=0.5, slope=1.702, shift=1.0)

pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []


@pytest.fixture(autouse=True)
def _on_the_device(monkeypatch):
    torch.manual_seed(0)
    if DEVICE.type == "cpu":  # the interpreter is slow per program, whatever its size
        monkeypatch.setattr("adamas_kernels.triton.experts.tiling", lambda rows, chunks: Tiling(256, 1))
        monkeypatch.setattr(unpacking, "ROWS", 256)
    with DEVICE:
        yield


def weights_of(kind: str, rows: int, columns: int, seed: int = 0) -> tuple[PlaneWeight, Tensor]:
    """All experts' weights in planes, and their numbers in float64 [COUNT, rows, columns]."""
    blocks = some_blocks(kind, COUNT * rows, columns, seed)
    return split(blocks, DEVICE), unpack(blocks).double().to(DEVICE).view(COUNT, rows, columns)


def expected_of(x, gate_up, down, biases, gate, chosen, shares):
    """In float64, one choice after another."""
    out = torch.zeros(len(x), down.shape[1], dtype=torch.float64)
    for token, (experts, each) in enumerate(zip(chosen.tolist(), shares.double(), strict=True)):
        for expert, share in zip(experts, each, strict=True):
            inner = gate(gate_up[expert] @ x[token].double() + biases[0][expert].double())
            out[token] += share * (down[expert] @ inner + biases[1][expert].double())
    return out


def assert_near(found, expected, epsilon):
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() <= epsilon * expected.abs().max()


def width_of(kind: str) -> int:
    """The number of inputs and of inner numbers: small, but whole blocks."""
    return 256 if FORMS[kind].units else 64


def example(kind, gate, dtype=FULL, bias=True, other_kind=None):
    """Experts with gate and up rows interleaved: the experts, numbers and biases."""
    width = width_of(kind)
    down, down_numbers = weights_of(kind, OUT, width, seed=2)
    if other_kind is None:
        part, numbers = weights_of(kind, 2 * width, width)
        parts = [part]
    else:
        (one, first), (other, second) = (
            weights_of(each, width, width, seed) for seed, each in enumerate((kind, other_kind))
        )
        parts, numbers = [one, other], torch.stack((first, second), 2).flatten(1, 2)
    biases = [torch.randn(COUNT, rows).to(dtype) * bias for rows in (2 * width, OUT)]
    experts = Experts(COUNT, parts, down, *(biases if bias else (None, None)), gate)
    return experts, numbers, down_numbers, biases


def check(experts, gate_up, down, biases, tokens, dtype, add):
    x = (torch.randn(tokens, experts.down.columns) / 100).to(dtype)
    chosen = torch.stack([torch.randperm(COUNT)[:2] for _ in range(tokens)])
    shares = torch.rand(tokens, 2).to(dtype)
    found = add(x, experts, chosen, shares)
    assert found.dtype == dtype
    assert_near(
        found, expected_of(x, gate_up, down, biases, experts.gate, chosen, shares), 4 * EPSILON[dtype]
    )


def few(x, experts, chosen, shares):
    return add_chosen(x, experts, chosen, shares)


def many(x, experts, chosen, shares, most=1 << 20):
    """Unpacks experts into memory full of NaN."""
    return add_grouped(x, experts, chosen, shares, lambda n: torch.full((n,), torch.nan, dtype=x.dtype), most)


@pytest.mark.parametrize("add", [few, many])
@pytest.mark.parametrize(("kind", "dtype"), [("Q4_K", FULL), ("Q5_1", FULL), ("Q6_K", HALF), ("MXFP4", HALF)])
def test_experts_of_every_width(kind, dtype, add):
    check(*example(kind, Gate(), dtype, bias=False), 2, dtype, add)


@pytest.mark.parametrize("add", [few, many])
@pytest.mark.parametrize(
    ("gate", "other_kind"),
    [(CLAMPED, None), (CLAMPED, "Q4_0"), (lambda inner: F.gelu(inner[..., ::2]) * inner[..., 1::2], None)],
)
def test_gates_of_other_kinds_and_biases(gate, other_kind, add):
    check(*example("MXFP4", gate, other_kind=other_kind), 2, FULL, add)


@pytest.mark.gpu
@pytest.mark.parametrize("add", [few, many])
@pytest.mark.parametrize("tokens", [1, 40, 700])
def test_experts_in_bfloat16(tokens, add):  # the interpreter cannot multiply bfloat16
    check(*example("Q4_K", CLAMPED, BRAIN), tokens, BRAIN, add)


def test_experts_are_unpacked_by_parts():
    experts, *numbers = example("Q8_0", Gate())
    check(experts, *numbers, 20, FULL, lambda *arguments: many(*arguments, most=4 * 64 * 64))


@pytest.mark.parametrize("chosen", [[[2, 2]], [[0, 1], [0, 1], [1, 0]], [[5, 0]] * 40])
def test_choices_are_sorted_by_their_expert(chosen):
    chosen = torch.tensor(chosen)
    grouping = Grouping.of(chosen, 6)
    by_line = chosen.flatten()[grouping.order]
    assert torch.equal(by_line, chosen.flatten().sort().values)
    assert torch.equal(by_line[grouping.line], chosen.flatten())
    assert grouping.ends.tolist() == [int((chosen <= expert).sum()) for expert in range(6)]


def test_experts_that_nobody_chose_leave_no_trace():
    experts, *numbers = example("Q8_0", Gate(), bias=False)
    x, shares = torch.randn(40, 64) / 100, torch.rand(40, 1)
    chosen = torch.full((40, 1), COUNT - 1)
    expected = expected_of(x, *numbers, experts.gate, chosen, shares)
    for found in (many(x, experts, chosen, shares), few(x[:1], experts, chosen[:1], shares[:1])):
        assert_near(found, expected[: len(found)], 4 * EPSILON[FULL])


def test_how_often_experts_are_read_decides_how(monkeypatch):
    taken = []
    for name in ("add_chosen", "add_grouped"):
        monkeypatch.setattr(f"adamas_kernels.triton.backend.{name}", lambda *_, name=name: taken.append(name))
    experts, *_ = example("Q8_0", Gate())
    for tokens in (1, FEW_READS * COUNT // 2, FEW_READS * COUNT // 2 + 1):
        choices = torch.zeros(tokens, 2)
        TritonBackend().mix(torch.zeros(tokens, 64), experts, choices.long(), choices)
    assert taken == ["add_chosen", "add_chosen", "add_grouped"]


def test_halves_of_an_experts_rows_take_turns():
    weight, numbers = weights_of("Q4_0", 6, 64)
    mixed = take_turns(halves(weight, COUNT))
    out = torch.empty(COUNT * 6, 64)
    unpacking.unpack_rows(mixed, out)
    expected = numbers.unflatten(1, (2, 3)).transpose(1, 2).reshape(COUNT * 6, 64)
    assert torch.equal(out.double(), expected)


@pytest.mark.gpu
def test_a_mixture_of_one_token_is_captured():
    experts, *numbers = example("Q4_K", Gate(), BRAIN)
    x = torch.zeros(1, 256, dtype=BRAIN)
    chosen, shares = torch.tensor([[0, 1]]), torch.rand(1, 2)
    add_chosen(x, experts, chosen, shares)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = add_chosen(x, experts, chosen, shares)
    for choice in ([2, 0], [1, 2]):
        x.copy_(torch.randn(1, 256) / 100)
        chosen.copy_(torch.tensor([choice]))
        graph.replay()
        expected = expected_of(x, *numbers, experts.gate, chosen, shares)
        assert_near(out, expected, 4 * EPSILON[BRAIN])


# transformers' modules and whole files

GATES = {
    "qwen3_moe": Gate(),
    "mixtral": Gate(),
    "granitemoe": Gate(),
    "gpt_oss": Gate(limit=7.0, slope=1.702, shift=1.0),
}


def experts_of(model: Any) -> Any:
    return next(module for module in model.modules() if can_pack(module))


@pytest.mark.parametrize("name", GATES)
def test_gates_are_known_by_what_they_compute(name):
    source = experts_of(build(name))
    gated = source._apply_gate

    def in_turn(inner):
        return gated(torch.cat((inner[..., ::2], inner[..., 1::2]), -1) if source.is_concatenated else inner)

    assert known_gate(source, in_turn) == GATES[name]
    assert known_gate(source, lambda inner: in_turn(inner) + 1) is None


def read_back(path: Path, placing: Placing) -> Any:
    file = GgufFile(path)
    settings = path.parent / "settings"
    settings.mkdir(exist_ok=True)
    (settings / "config.json").write_text(json.dumps(config_of(file, Silent())))
    with torch.device("cpu"):  # as programs read files: the model's parts go to its device afterwards
        return build_model(file, settings, FULL, DEVICE, placing).eval()


def kind_of(name: str) -> GGMLQuantizationType | None:
    """Experts have two types; all other weights are plain numbers."""
    if name.endswith("_exps.weight"):
        return GGMLQuantizationType.Q8_0 if "down" in name else GGMLQuantizationType.Q4_0
    return None


def biases_of(mixtures: list[PlaneExperts]) -> int:
    """The number of values in biases, which are not parameters."""
    return sum(
        bias.numel()
        for module in mixtures
        for bias in (module.experts.gate_up_bias, module.experts.down_bias)
        if bias is not None
    )


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_file_computes_from_planes_what_it_does_from_numbers(name, tmp_path):
    path = write_source(name, build(name).cpu(), tmp_path, kind_of)
    plain, model = read_back(path, Numbers(FULL, DEVICE)), read_back(path, Planes(FULL, DEVICE))
    mixtures = [module for module in model.modules() if isinstance(module, PlaneExperts)]
    assert mixtures
    assert all(module.experts.fused for module in mixtures)
    numbers = sum(parameter.numel() for parameter in plain.parameters())
    held = sum(module.weight_count for module in mixtures)
    assert held + sum(parameter.numel() for parameter in model.parameters()) == numbers - biases_of(mixtures)
    assert all(module.weight_bytes < module.weight_count for module in mixtures)
    for tokens in (1, 12):
        ids = torch.arange(tokens)[None] % VOCABULARY
        with torch.no_grad():
            found, expected = (each(ids, use_cache=False).logits for each in (model, plain))
        assert_near(found, expected.double(), 1e-4)


@pytest.mark.parametrize("kind", ["BF16", "Q4_0"])
def test_experts_that_are_numbers_in_the_file_stay_numbers(kind, tmp_path):
    path = write_source(
        "mixtral", build("mixtral").cpu(), tmp_path,
        lambda name: GGMLQuantizationType[kind] if name.endswith("gate_exps.weight") else None,
    )  # fmt: skip
    model = read_back(path, Planes(FULL, DEVICE))
    assert not any(isinstance(module, PlaneExperts) for module in model.modules())
    assert not any(parameter.is_meta for parameter in model.parameters())


def answer(model: Any, folder: Path, *, graphs: bool) -> list[int]:
    """Greedy tokens after a short prompt, with captured or launched steps."""
    loaded = LoadedModel(model, ModelFiles("tiny", folder, ""), DEVICE, FULL, 512, ())
    timeline = Timeline(loaded, AttentionSettings("full"), context=64, graphs=graphs)
    events = list(timeline.answer(np.arange(20, dtype=np.int32), Sampling(), 8, ()))
    assert timeline.step_reason is None
    return [event.id for event in events if isinstance(event, Token)]


@pytest.mark.gpu
def test_steps_of_a_mixture_are_captured(tmp_path):
    path = write_source("qwen3_moe", build("qwen3_moe").cpu(), tmp_path, kind_of)
    model = read_back(path, Planes(FULL, DEVICE))
    with torch.device("cpu"):  # programs pin memory there
        assert answer(model, tmp_path, graphs=True) == answer(model, tmp_path, graphs=False)
