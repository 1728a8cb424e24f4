"""Products with weights in their file's bits: in Triton's interpreter here, natively with `-m gpu`."""

from __future__ import annotations

import sys
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from adamas_kernels.blocks import BlockWeight, unpack
from adamas_kernels.contract import LARGEST_STEP
from adamas_kernels.triton import backend, planes
from adamas_kernels.triton.arranging import gate_rows, norm_rows
from adamas_kernels.triton.backend import TritonBackend
from adamas_kernels.triton.largest import largest
from adamas_kernels.triton.plane_product import LANES, Tiling, multiply_vector
from adamas_kernels.triton.plane_rows import MOST_ROWS, multiply_numbers, multiply_rows
from adamas_kernels.triton.plane_tiles import TilesTiling, multiply_tiles
from adamas_kernels.triton.planes import FORMS, PlaneWeight, join, joinable, split
from adamas_kernels.triton.rounding import norm_vector
from adamas_kernels.triton.unpacking import embed, unpack_rows
from block_weights import some_blocks
from families import SMALL, seeing_config
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from adamas_cli.engine import fused
from adamas_cli.engine.alike import rotates_halves
from adamas_cli.engine.fused import fuse
from adamas_cli.models.families import from_config
from adamas_cli.models.plane_linear import PlaneEmbedding, PlaneLinear, Planes
from adamas_cli.models.split import Summed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
EPSILON = {HALF: 1e-3, BRAIN: 8e-3, FULL: 2e-6}  # of the largest result; half is for rounding the result
# More than one group of chunks per warp, and a partial last one.
COLUMNS = 32 * LANES + 256

pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []


@pytest.fixture(autouse=True)
def _on_the_device():
    torch.manual_seed(0)
    with DEVICE:
        yield


def planes_of(kind, rows=7, columns=COLUMNS):
    """A weight in planes, and its numbers in float64."""
    blocks = some_blocks(kind, rows, columns)
    return split(blocks, DEVICE), unpack(blocks).double().to(DEVICE)


def assert_near(found, expected, epsilon):
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() <= epsilon * expected.abs().max()


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("dtype", [BRAIN, HALF, FULL])
def test_a_vector_times_a_weight(kind, dtype):
    weight, exact = planes_of(kind)
    x = torch.randn(1, 1, COLUMNS).to(dtype)
    bias = torch.randn(7).to(dtype)
    expected = x.double() @ exact.T + bias.double()
    found = multiply_vector(x, weight, bias)
    assert found.dtype == dtype
    assert_near(found, expected, EPSILON[dtype])


@pytest.mark.parametrize(
    "tiles", [Tiling(1, 1), Tiling(4, 1), Tiling(2, 2), Tiling(1, 2, 2), Tiling(2, 1, 4)]
)
def test_however_a_product_is_dealt_out(tiles):
    weight, exact = planes_of("Q6_K", rows=11)
    x = torch.randn(1, COLUMNS)
    assert_near(multiply_vector(x, weight, tiles=tiles), x.double() @ exact.T, EPSILON[FULL])


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
def test_integers_lose_less_than_bfloat16(kind):
    """Even if one number of a chunk outweighs all others, as in some activations of language models."""
    weight, exact = planes_of(kind, rows=64)
    x = torch.randn(1, COLUMNS) / 100  # keeps results within float16
    x[:, ::97] *= 1000
    found = multiply_vector(x.to(HALF), weight).double()
    lost = (found - x.to(HALF).double() @ exact.T).norm()
    rounding = (x.to(BRAIN).double() @ exact.T - x.double() @ exact.T).norm()
    assert lost < rounding / 2


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
def test_a_vector_of_zeros_is_no_division_by_zero(kind):
    weight, _ = planes_of(kind)
    assert torch.equal(multiply_vector(torch.zeros(1, COLUMNS, dtype=HALF), weight), torch.zeros(1, 7).half())


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
@pytest.mark.parametrize("dtype", [BRAIN, HALF])
def test_a_norm_is_divided_out_by_the_products_that_it_is_for(kind, dtype):
    weight, exact = planes_of(kind, rows=6)
    x, scale = torch.randn(1, 1, COLUMNS).to(dtype), 1 + torch.randn(COLUMNS).to(dtype) / 4
    normed = norm_vector(x, scale, 1e-3)
    assert (normed.shape, normed.dtype, normed.device.type) == (x.shape, dtype, "meta")
    expected = F.rms_norm(x.double(), (COLUMNS,), scale.double(), 1e-3) @ exact.T
    bias = torch.randn(6).to(dtype)
    assert_near(multiply_vector(normed, weight, bias), expected + bias.double(), EPSILON[dtype])
    gate, up = (expected / 100).chunk(2, -1)  # so that gates are neither all open nor all shut
    normed = norm_vector(x, scale / 100, 1e-3)
    assert_near(multiply_vector(normed, weight, gated=True), F.silu(gate) * up, 4 * EPSILON[dtype])


@pytest.mark.parametrize("rows", [2, 10])
@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0"])
def test_a_gate_and_what_it_lets_through(kind, rows):
    weight, exact = planes_of(kind, rows)
    x = torch.randn(1, COLUMNS) / 100
    gate, up = (x.double() @ exact.T).chunk(2, -1)
    assert_near(TritonBackend().gated(x, weight), F.silu(gate) * up, 4 * EPSILON[FULL])


@pytest.mark.parametrize("count", [1, 1000, 5000])
def test_the_first_of_the_largest_numbers_is_found(count):
    x = torch.randint(-9, 9, (count,)).to(HALF)
    token, weight = torch.empty(1, dtype=torch.int64, device=DEVICE), torch.empty(1, device=DEVICE)
    largest(x, token, weight)
    assert (token.item(), weight.item()) == (x.tolist().index(x.max()), x.max())


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("dtype", [HALF, FULL])
def test_few_rows_times_a_weight(kind, dtype):
    weight, exact = planes_of(kind, rows=19)
    x = torch.randn(3, COLUMNS).to(dtype)
    bias = torch.randn(19).to(dtype)
    found = multiply_rows(x, weight, bias)
    assert found.dtype == dtype
    assert_near(found, x.double() @ exact.T + bias.double(), EPSILON[dtype])


@pytest.mark.parametrize(
    ("kind", "columns", "count", "rows", "tiles"),
    [
        ("Q4_0", 32 * 9, 1, 16, TilesTiling(1, 1)),  # one chunk at a time
        ("Q8_0", 32 * 6, 9, 33, TilesTiling(2, 2)),  # two, and more warps than groups of them
        ("Q8_0", 32 * 12, 24, 5, TilesTiling(1, 2)),  # fewer rows than in a tile, and a warp without a group
        ("Q4_K", 256, 33, 32, TilesTiling(2, 2)),  # several programs for the rows of x, and full tiles
        ("Q6_K", 768, 3, 70, TilesTiling(4, 2)),
        ("Q5_1", 320, 8, 32, TilesTiling(2, 8)),
    ],
)
@pytest.mark.parametrize("dtype", [BRAIN, HALF])
def test_however_few_rows_are_dealt_out(kind, columns, count, rows, tiles, dtype):
    weight, exact = planes_of(kind, rows, columns)
    x = torch.randn(count, columns).to(dtype)
    assert_near(multiply_tiles(x, weight, tiles=tiles), x.double() @ exact.T, EPSILON[dtype])


@pytest.mark.parametrize(("count", "columns"), [(2, 256), (9, 96), (16, 256)])
@pytest.mark.parametrize("dtype", [BRAIN, HALF])
def test_few_rows_are_normed_and_gated_where_they_are_arranged(count, columns, dtype):
    """By the backend, for products that read them and add a residual."""
    kernels, (weight, exact) = TritonBackend(), planes_of("Q8_0", rows=19, columns=columns)
    x, scale = torch.randn(1, count, columns).to(dtype) * 30, torch.rand(columns).to(dtype) + 0.5
    residual = torch.randn(1, count, 19).to(dtype) * 10
    normed = kernels.norm(x, scale, 1e-5)
    assert (normed.shape, normed.dtype, normed.device.type) == (x.shape, dtype, "meta")
    expected = F.rms_norm(x.double(), (columns,), scale.double(), 1e-5) @ exact.T
    assert_near(kernels.linear(normed, weight, residual), expected + residual.double(), 3 * EPSILON[dtype])
    x = torch.randn(count, 2 * columns).to(dtype)
    gate, up = x.double().split(columns, -1)
    assert_near(kernels.linear(gate_rows(x), weight), F.silu(gate) * up @ exact.T, 3 * EPSILON[dtype])


def test_numbers_beyond_float16_before_they_are_normed():
    weight, exact = planes_of("Q8_0", rows=4, columns=256)
    x = torch.full((2, 256), 300.0, dtype=HALF)  # their squares are infinite in float16
    x[1, ::3] = 0.01
    scale = torch.full((256,), 300.0, dtype=HALF)
    expected = F.rms_norm(x.double(), (256,), scale.double(), 1e-6) @ exact.T
    found = multiply_rows(norm_rows(x, scale / 100, 1e-6), weight)
    assert_near(found, expected / 100, EPSILON[HALF])


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
def test_few_rows_lose_less_than_a_weight_in_bfloat16(kind):
    weight, exact = planes_of(kind, rows=32)
    x = (torch.randn(8, COLUMNS) / 100).to(HALF)  # keeps results within float16
    x[:, ::97] *= 1000
    lost = (multiply_tiles(x, weight).double() - x.double() @ exact.T).norm()
    rounding = (x.double() @ (exact.to(BRAIN).double() - exact).T).norm()
    assert lost < rounding / 2


@pytest.mark.gpu
@pytest.mark.parametrize("kind", FORMS)
def test_few_rows_in_bfloat16(kind):
    weight, exact = planes_of(kind, rows=70)
    x = torch.randn(MOST_ROWS, COLUMNS).to(BRAIN)
    for multiply in (multiply_rows, multiply_numbers):
        assert_near(multiply(x, weight), x.double() @ exact.T, EPSILON[BRAIN])


@pytest.mark.parametrize("kind", FORMS)
def test_unpacked_numbers_are_those_of_the_file(kind):
    weight, exact = planes_of(kind)
    out = torch.full((7, COLUMNS), torch.nan)
    unpack_rows(weight, out)
    assert_near(out, exact, 1e-7)


@pytest.mark.parametrize("kind", FORMS)
def test_rows_of_tokens(kind):
    weight, exact = planes_of(kind)
    tokens = torch.tensor([[6, 0, 3]])
    assert_near(embed(weight, tokens, FULL), exact[tokens], 1e-7)
    assert_near(embed(weight, tokens, BRAIN), exact[tokens], EPSILON[BRAIN])


@pytest.mark.parametrize("parts", [1, 3])
def test_many_rows_are_multiplied_with_unpacked_parts(parts, monkeypatch):
    weight, exact = planes_of("Q5_K", rows=9)
    monkeypatch.setattr(backend, "UNPACKED", -(-9 // parts) * COLUMNS)
    x, bias = torch.randn(2, MOST_ROWS, COLUMNS), torch.randn(9)
    triton = TritonBackend()
    expected = x.double() @ exact.T + bias.double()
    for _ in range(2):
        assert_near(triton.linear(x, weight, bias), expected, 1e-5)


@pytest.mark.parametrize("count", [1, 2, MOST_ROWS + 1])
def test_every_number_of_rows_has_its_kernel(count):
    weight, exact = planes_of("Q4_K", rows=5, columns=256)
    x = torch.randn(1, count, 256)
    assert_near(TritonBackend().linear(x, weight), x.double() @ exact.T, 1e-5)


def test_plain_numbers_stay_plain():
    for kind, dtype in planes.PLAIN.items():
        numbers = torch.randn(3, 64, device="cpu").to(dtype)
        found = split(BlockWeight(kind, numbers.view(torch.uint8), 64), DEVICE)
        assert torch.equal(found, numbers.to(DEVICE))


def test_other_kinds_are_rounded_to_eight_bits():
    blocks = some_blocks("TQ2_0", 5, 512)
    weight = split(blocks, DEVICE)
    assert weight.kind == "Q8_0"
    out = torch.full((5, 512), torch.nan)
    unpack_rows(weight, out)
    exact = unpack(blocks).to(DEVICE)
    assert_near(out, exact.double(), 1 / 254 + 1e-3)
    assert (out[exact == 0] == 0).all()


def test_a_large_weight_is_split_by_parts(monkeypatch):
    whole, _ = planes_of("Q6_K")
    monkeypatch.setattr(planes, "AT_ONCE", 3 * COLUMNS)
    parts, _ = planes_of("Q6_K")
    for name, plane in whole.planes.items():
        assert torch.equal(plane, parts.planes[name])


def test_weights_of_one_kind_are_joined():
    (one, first), (other, second) = planes_of("Q4_K", rows=3), planes_of("Q4_K", rows=5)
    assert joinable([one, other])
    assert not joinable([one, planes_of("Q6_K")[0]])
    joined = join([one, other])
    x = torch.randn(1, COLUMNS)
    assert_near(multiply_vector(x, joined), x.double() @ torch.cat((first, second)).T, EPSILON[FULL])
    assert isinstance(joined.part(3, 8), PlaneWeight)
    assert_near(multiply_vector(x, joined.part(3, 8)), x.double() @ second.T, EPSILON[FULL])


def test_a_weight_takes_the_bits_of_its_file():
    for kind, bits in {"Q4_K": 4.625, "Q6_K": 6.5625, "Q8_0": 8.5, "Q4_0": 4.5, "IQ4_XS": 4.3125}.items():
        weight, _ = planes_of(kind)
        assert weight.bytes * 8 == bits * weight.rows * weight.columns


@pytest.mark.gpu
def test_a_product_is_captured():
    weight, exact = planes_of("Q4_K", rows=4096)
    x = torch.randn(1, COLUMNS).to(BRAIN)
    multiply_vector(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = multiply_vector(x, weight)
    x.copy_(torch.randn(1, COLUMNS))
    graph.replay()
    assert_near(out, x.double() @ exact.T, EPSILON[BRAIN])


VOCABULARY, WIDTH, INNER = 16, 256, 256


def llama_and_its_blocks():
    """A tiny Llama with random blocks as weights, and the blocks by module name; v_proj and down_proj have
    another type, as in a Q4_K_M file.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return with_blocks(LlamaForCausalLM(config).eval())


def with_blocks(model):
    blocks = {}
    for name, module in model.named_modules():
        if hasattr(module, "weight") and module.weight.dim() == 2 and module.weight.shape[1] % WIDTH == 0:
            kind = "Q6_K" if name.endswith(("v_proj", "down_proj")) else "Q4_K"
            blocks[name] = some_blocks(kind, *module.weight.shape, seed=len(blocks))
            module.weight.data = unpack(blocks[name]).to(DEVICE)
    return model, blocks


def logits_of(model, count):
    with torch.inference_mode():
        return model(torch.arange(count)[None] % VOCABULARY).logits


def place(model, blocks, dtype=FULL):
    planes = Planes(dtype, DEVICE)
    for name, weight in blocks.items():
        module = model.get_submodule(name)
        if isinstance(module, torch.nn.Embedding):
            assert planes.embedding(model, name, weight)
        else:
            planes.linear(model, name, weight, module.bias)


@pytest.mark.parametrize("count", [1, 3, MOST_ROWS + 1])
def test_a_model_computes_from_planes_what_it_does_from_numbers(count):
    model, blocks = llama_and_its_blocks()
    expected = logits_of(model, count).double()
    place(model, blocks)
    assert isinstance(model.model.embed_tokens, PlaneEmbedding)
    assert sum(isinstance(module, PlaneLinear) for module in model.modules()) == 8
    assert_near(logits_of(model, count), expected, 1e-4)


def test_a_shared_weight_is_uploaded_once():
    model, blocks = llama_and_its_blocks()
    blocks["lm_head"] = blocks["model.embed_tokens"]
    place(model, blocks)
    assert model.lm_head.planes is model.model.embed_tokens.planes


def test_weights_that_lay_at_one_place_one_after_the_other_are_told_apart():
    model, blocks = llama_and_its_blocks()
    planes, place_of_both = Planes(FULL, DEVICE), blocks["model.layers.0.self_attn.q_proj"].data
    for name in ("q_proj", "k_proj"):
        name = f"model.layers.0.self_attn.{name}"
        weight = blocks[name]
        place_of_both[: weight.rows] = weight.data.clone()  # like memory that was freed and allocated again
        planes.linear(model, name, BlockWeight(weight.kind, place_of_both[: weight.rows], WIDTH), None)
    assert model.model.layers[0].self_attn.k_proj.out_features == WIDTH // 2


def test_the_first_of_several_ranks_adds_the_residual():
    whole = some_blocks("Q6_K", 8, 2 * WIDTH)
    x, residual = torch.randn(1, 2 * WIDTH, device=DEVICE), torch.randn(1, 8, device=DEVICE)
    half, total = whole.data.shape[1] // 2, torch.zeros(1, 8, device=DEVICE)

    class Ranks:
        def __init__(self, rank):
            self.first = rank == 0

        def sum(self, numbers):
            return total.add_(numbers)

    for rank in range(2):
        model = torch.nn.ModuleDict({"product": torch.nn.Linear(WIDTH, 8, bias=False)})
        data = whole.data[:, rank * half : (rank + 1) * half].contiguous()
        Planes(FULL, DEVICE).linear(model, "product", BlockWeight("Q6_K", data, WIDTH), None)
        summed = Summed(model["product"], Ranks(rank))
        assert fused._adds(summed)
        adding = fused._Adding(summed)
        adding.addend = residual
        adding.forward(x[:, rank * WIDTH : (rank + 1) * WIDTH].contiguous())
    assert_near(total, x.double() @ unpack(whole).double().to(DEVICE).T + residual.double(), 1e-4)


# Liger's kernels and sums of bfloat16 do not run in the interpreter.
NATIVE = [
    pytest.param(count, dtype, marks=pytest.mark.gpu)
    for count, dtype in product((1, 3, LARGEST_STEP), (FULL, BRAIN))
] + [pytest.param(300, FULL, marks=pytest.mark.gpu)]


@pytest.mark.parametrize(("count", "dtype"), [(LARGEST_STEP + 1, FULL), *NATIVE])
def test_a_fused_model_computes_the_same(count, dtype):
    model, blocks = llama_and_its_blocks()
    expected = logits_of(model, count).double()
    model.to(dtype)
    place(model, blocks, dtype)
    fuse(model)
    assert_near(logits_of(model, count), expected, 1e-4 if dtype == FULL else 4e-2)
    layer = model.model.layers[0]
    query, key = layer.self_attn.q_proj.planes, layer.self_attn.k_proj.planes
    assert query.low.untyped_storage().data_ptr() == key.low.untyped_storage().data_ptr()


def seeing_and_its_blocks(name):
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "head_dim": WIDTH // 4, "num_hidden_layers": 1}
    config = seeing_config(name, **(SMALL | sizes | {"vocab_size": VOCABULARY}))
    return with_blocks(from_config(config).eval())


def test_a_model_that_sees_is_fused_in_its_text_part():
    model, blocks = seeing_and_its_blocks("qwen3_vl")
    last = "language_model.layers.0.self_attn.o_proj", "language_model.layers.0.mlp.down_proj"
    place(model, {part: blocks[part] for part in blocks if part.endswith(last)})
    fuse(model)
    text = model.get_decoder()
    assert "forward" in vars(text.layers[0])
    assert hasattr(sys.modules[type(text).__module__].apply_rotary_pos_emb, "on_gpu")


@pytest.mark.parametrize(("count", "dtype"), NATIVE)
@pytest.mark.parametrize("name", ["mistral3", "qwen3_vl"])
def test_a_fused_model_that_sees_computes_the_same(name, count, dtype):
    model, blocks = seeing_and_its_blocks(name)
    expected = logits_of(model, count).double()
    model.to(dtype)
    place(model, blocks, dtype)
    fuse(model)
    assert_near(logits_of(model, count), expected, 1e-4 if dtype == FULL else 4e-2)


@pytest.mark.parametrize(
    ("name", "norms", "mlps", "rotates"),
    [
        ("llama", 1, 1, True),
        ("qwen3_moe", 1, 1, True),
        ("gemma", 1, 0, True),  # gated by GELU
        ("gpt_oss", 1, 0, False),  # its cosines are half as wide
        ("cohere", 0, 1, False),  # LayerNorm; neighbours are rotated
        ("arcee", 1, 0, True),  # without gates
    ],
)
def test_kernels_take_the_place_of_what_computes_the_same(name, norms, mlps, rotates):
    config = AutoConfig.for_model(
        name, vocab_size=16, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, pad_token_id=None, mlp_only_layers=[0],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    kinds = {type(module): module for module in model.modules()}.values()
    assert sum(fused._norm_kind(module) is not None for module in kinds) == norms
    assert sum(fused._mlp_kind(module, model) is not None for module in kinds) == mlps
    assert rotates_halves(sys.modules[type(model).__module__].apply_rotary_pos_emb) == rotates
