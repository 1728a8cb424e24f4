"""`attn_implementation="adamas"` in transformers' own `generate`, with a cache that chooses tokens."""

from __future__ import annotations

import pytest
import torch
from conftest import ARCHITECTURES, tiny_architecture
from hybrid_models import hybrid_model

from adamas_cli import cache_for
from adamas_cli.errors import ModelUnavailableError

PROMPT = torch.arange(3, 99)[None] * 7 % 251
NEW = 12


def generate(model, cache=None, ids=PROMPT, **how):
    with torch.no_grad():
        return model.generate(ids, past_key_values=cache, max_new_tokens=NEW, do_sample=False, **how)[
            0
        ].tolist()


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_budget_beyond_the_context_generates_what_full_attention_does(family, tmp_path):
    model = tiny_architecture(family)
    full = generate(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="adamas")
    assert generate(loaded) == full  # without a cache of ours it attends as transformers does
    cache = cache_for(loaded, context=256, budget=256)
    assert generate(loaded, cache) == full
    assert cache.get_seq_length() == len(full) - 1
    chunked = cache_for(loaded, context=256, budget=256)
    assert generate(loaded, chunked, prefill_chunk_size=40) == full
    assert generate(loaded) == full


def test_a_small_budget_attends_to_fewer_tokens():
    model = tiny_architecture("llama")
    full = generate(model)
    caches = [cache_for(model, context=256, budget=budget) for budget in (8, 8)]
    sparse = [generate(model, cache) for cache in caches]
    assert sparse[0] == sparse[1] != full


def test_a_cache_goes_on_with_a_longer_prompt():
    model = tiny_architecture("llama")
    cache = cache_for(model, context=16, budget=512)
    first = torch.tensor([generate(model, cache)])
    longer = torch.cat([first, PROMPT[:, :5]], 1)
    assert generate(model, cache, longer) == generate(model, None, longer)


def test_what_the_cache_cannot_hold_is_refused_and_leaves_no_pass():
    model = tiny_architecture("llama")
    mask = torch.ones_like(PROMPT)
    mask[0, 0] = 0
    for ids, how in ((PROMPT.repeat(2, 1), {}), (PROMPT, {"attention_mask": mask})):
        with pytest.raises(ValueError, match="one sequence without padding"):
            generate(model, cache_for(model, context=256), ids, **how)
    cache = cache_for(model, context=256, budget=256)
    with pytest.raises(IndexError):
        model(torch.full((1, 4), 10_000), past_key_values=cache)
    assert generate(model) == generate(model, cache_for(model, context=256, budget=256))


@pytest.mark.parametrize(("name", "words"), [("lfm2", "conv"), ("minicpm3", "latent")])
def test_models_with_other_layers_are_refused(name, words):
    with pytest.raises(ModelUnavailableError, match=words):
        cache_for(hybrid_model(name))


@pytest.mark.gpu
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_gpu_generates_what_full_attention_does(family):
    model = tiny_architecture(family).to("cuda")
    ids = PROMPT.to("cuda")
    cache = cache_for(model, context=256, budget=256)
    assert generate(model, cache, ids) == generate(model, None, ids)
