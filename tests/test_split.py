"""Shares of models, computed by threads that sum their products, against whole models."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import tiny_architecture
from families import tiny_config, tiny_family
from threads_of_ranks import InMemory, at_once, ranks_as_threads

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.borders import borders
from adamas_cli.models.families import from_config
from adamas_cli.models.filling import Numbers, without_memory
from adamas_cli.models.gguf.stored import Stored
from adamas_cli.models.split import Split, require_splittable, split_obstacle

SPLIT = (
    "apertus", "arcee", "cohere", "cohere2", "cwm", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text",
    "granite", "hyperclovax", "internlm3", "jais2", "llama", "ministral3", "mistral", "nanochat", "nemotron",
    "olmo", "phi", "qwen2", "qwen3", "seed_oss", "smollm3", "starcoder2", "vaultgemma",
)  # fmt: skip
FLOAT, HOST = torch.float32, torch.device("cpu")


def shares_of(model, count):
    shares = []
    for ranks in ranks_as_threads(count):
        split = Split(ranks)
        config = split.config(model.config)
        share = without_memory(partial(from_config, config, dtype=FLOAT), Path("memory"), "settings")
        split.fill(share, InMemory(model), FLOAT, HOST, Numbers(FLOAT, HOST))
        shares.append(share.eval())
    return shares


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


def compare(model, count):
    ids = torch.arange(2, 40).unsqueeze(0)
    expected = logits(model, ids)
    found = at_once([partial(logits, share, ids) for share in shares_of(model, count)])
    exact = logits(model.double(), ids)
    own = (expected - exact).abs().max()
    for one in found:
        assert torch.equal(one, found[0])
        assert (one - exact).abs().max() <= 4 * own + 1e-6 * exact.abs().max()


@pytest.mark.parametrize("family", SPLIT)
def test_shares_compute_together_what_the_whole_model_does(family):
    assert split_obstacle(tiny_config(family), 2) is None
    compare(tiny_family(family), 2)


def test_more_than_two_shares_and_uneven_mlps():
    config = tiny_config("qwen2")
    config.num_attention_heads, config.num_key_value_heads, config.intermediate_size = 8, 4, 5 * 32
    config.head_dim = 16
    torch.manual_seed(0)
    model = from_config(config, dtype=FLOAT).eval()
    assert [share.config.intermediate_size for share in shares_of(model, 4)] == [64, 32, 32, 32]
    compare(model, 4)


def test_a_bias_of_summed_products_is_added_once():
    model = tiny_family("starcoder2")
    torch.nn.init.normal_(model.model.layers[0].mlp.c_proj.bias)
    first, second = shares_of(model, 2)
    assert first.model.layers[0].mlp.c_proj.product.bias is not None
    assert second.model.layers[0].mlp.c_proj.product.bias is None
    compare(model, 2)


def test_a_share_has_its_part_of_weights_only():
    model = tiny_architecture("llama")
    shares = shares_of(model, 2)
    matrices = [
        sum(x.numel() for x in one.model.layers.parameters() if x.dim() > 1) for one in (model, *shares)
    ]
    assert matrices[0] == matrices[1] + matrices[2]
    for share in shares:
        assert share.config.num_key_value_heads == 1
        assert share.lm_head.product.weight.shape[0] * 2 == model.lm_head.weight.shape[0]


def test_a_vocabulary_without_equal_parts_stays_whole():
    config = tiny_config("llama")
    config.vocab_size = 131
    torch.manual_seed(0)
    model = from_config(config, dtype=FLOAT).eval()
    assert [share.lm_head.out_features for share in shares_of(model, 2)] == [131, 131]
    compare(model, 2)


@pytest.mark.parametrize(
    ("family", "count", "reason"),
    [
        ("llama", 4, "its 2 KV heads are not a multiple of 4"),
        ("mixtral", 2, "experts are not split yet"),
        ("deepseek_v3", 2, "experts are not split yet"),
        ("phi3", 2, "parts of kind colwise_gather_output"),
        ("olmo2", 2, "parts of kind colwise_gather_output"),
        ("minicpm3", 2, "parts of kind mla_kv_a_proj"),
        ("gpt_neox", 2, "query_key_value.weight does not follow"),
        ("gpt2", 2, "transformers has no plan for its type"),
        ("qwen3_next", 2, "experts are not split yet"),
    ],
)
def test_a_model_that_cannot_be_split_is_refused_in_one_sentence(family, count, reason):
    with pytest.raises(
        ModelUnavailableError, match=f"cannot be split over {count} GPUs: .*{reason}"
    ) as error:
        require_splittable(family, tiny_config(family), count)
    assert "\n" not in str(error.value)


def test_parts_end_at_borders_of_blocks():
    assert borders(35 * 256, 2) == [0, 18 * 256, 35 * 256]
    assert borders(4864, 2) == [0, 10 * 256, 19 * 256]
    assert borders(96, 2) == [0, 64, 96]  # a block of 256 does not divide it
    assert borders(256, 2) == [0, 128, 256]  # nor are there two
    assert borders(7, 3) == [0, 3, 5, 7]
    with pytest.raises(ValueError, match="2 numbers have no 3 parts"):
        borders(2, 3)


def test_columns_of_blocks_are_those_of_the_numbers():
    rows, columns = 3, 128
    data = torch.arange(rows * columns // 32 * 34, dtype=torch.int64).remainder(60).to(torch.uint8)
    whole = Stored("Q8_0", data, (rows, columns))
    assert torch.equal(whole.columns(32, 96).numbers(), whole.numbers()[:, 32:96])


def test_a_part_that_would_end_within_a_block_is_refused():
    config = tiny_architecture("llama").config
    config.num_attention_heads, config.num_key_value_heads = 2, 2  # of 16 numbers each
    model = from_config(config, dtype=FLOAT)

    class InBlocks(InMemory):
        def stored(self, name):
            found = super().stored(name)
            if not name.endswith("o_proj.weight"):
                return found
            return Stored("Q8_0", torch.zeros(found.shape[0] * 34, dtype=torch.uint8), found.shape)

    split = Split(ranks_as_threads(2)[0])
    blank = partial(from_config, split.config(config), dtype=FLOAT)
    share = without_memory(blank, Path("memory"), "settings")
    with pytest.raises(
        ModelUnavailableError, match=r"in blocks of 32 numbers \(Q8_0\), and a part would end"
    ):
        split.fill(share, InBlocks(model), FLOAT, HOST, Numbers(FLOAT, HOST))
