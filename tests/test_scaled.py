"""`--rope-scaling`: positions scaled for a longer context than the model's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TINY_CONTEXT

from adamas_cli.errors import UsageError
from adamas_cli.models import load, resolve
from adamas_cli.models.scaled import Scaling, scale
from adamas_cli.models.shape import read_shape
from adamas_cli.progress import Silent


def found(name: Path, asked: str | None):
    return resolve(str(name), offline=True, rope_scaling=asked, progress=Silent())


def test_the_context_grows_by_the_factor_in_plans_and_in_the_model(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path))
    plain, scaled, other = (found(tiny_model, asked) for asked in (None, "yarn:4", "linear:2.5"))
    context = 4 * TINY_CONTEXT
    shapes = [read_shape(files.directory).context for files in (plain, scaled, other)]
    assert shapes == [TINY_CONTEXT, context, 2.5 * TINY_CONTEXT]
    assert len({files.fingerprint for files in (plain, scaled, other)}) == 3
    assert found(tiny_model, "yarn:4") == scaled
    loaded = [load(files, device="cpu", dtype="float32", progress=Silent()) for files in (plain, scaled)]
    assert loaded[1].context_length == context
    turned = [one.model.model.rotary_emb.inv_freq for one in loaded]
    assert not torch.equal(*turned)
    assert torch.equal(*(one.model.lm_head.weight for one in loaded))


@pytest.mark.parametrize("asked", ["yarn", "yarn:1", "yarn:x", "yarn:nan", "yarn:inf", "longrope:2", ""])
def test_what_is_no_scaling_is_refused(asked):
    with pytest.raises(UsageError, match="a factor above 1, such as yarn:4"):
        Scaling.of(asked)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "has linear positions of its own"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "has llama3 positions of its own"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "by kind of layer"),
    ],
)
def test_positions_that_are_scaled_already_stay(config, told):
    config["max_position_embeddings"] = 100
    before = dict(config)
    with pytest.raises(UsageError, match=told):
        scale(config, Scaling("yarn", 4.0), "it")
    assert config == before


def test_old_and_new_configs_are_scaled_where_they_say_it():
    old = {"rope_theta": 1e4, "rope_scaling": None, "max_position_embeddings": 100}
    new = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}, "max_position_embeddings": 100}
    for config, field in ((old, "rope_scaling"), (new, "rope_parameters")):
        scale(config, Scaling("yarn", 4.0), "it")
        assert config[field]["rope_type"] == "yarn"
        assert config[field]["original_max_position_embeddings"] == 100
    assert new["rope_parameters"]["rope_theta"] == 1e4
