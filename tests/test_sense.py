"""Nonsensical configs and weights are refused in one sentence, by plans and answers alike."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_architecture
from safetensors.torch import load_file, save_file

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models import ModelFiles, load
from adamas_cli.planning.facts import file_facts
from adamas_cli.progress import Silent

WEIGHTS = "model.safetensors"


def rope(kind: str = "default", **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **fields}}


def longrope(short: Any, long: Any, original: int = 2048) -> dict[str, Any]:
    lists = {"short_factor": short, "long_factor": long}
    return rope("longrope", factor=2.0, original_max_position_embeddings=original, **lists)


# Changed fields of a tiny Llama's config (4 heads of 16, 2 KV heads, 4 layers), and part of the message.
CORRUPTED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"num_attention_heads": 0}, "`num_attention_heads` is 0"),
    ({"num_attention_heads": -4}, "`num_attention_heads` is -4"),
    ({"num_attention_heads": "4"}, "`num_attention_heads` is '4'"),
    ({"num_attention_heads": None}, "num_attention_heads"),
    ({"num_attention_heads": 10**9}, "`num_attention_heads` is 1000000000"),
    ({"num_attention_heads": 4, "num_key_value_heads": 3}, "4 query heads cannot share 3 KV heads"),
    ({"num_key_value_heads": 0}, "`num_key_value_heads` is 0"),
    ({"num_key_value_heads": 8}, "4 query heads cannot share 8 KV heads"),
    ({"head_dim": 0}, "`head_dim` is 0"),
    ({"head_dim": -16}, "`head_dim` is -16"),
    ({"head_dim": 15}, "even"),
    ({"head_dim": 16.5}, "head_dim"),
    ({"hidden_size": 0}, "`hidden_size` is 0"),
    ({"hidden_size": 63}, "63"),
    ({"hidden_size": True}, "`hidden_size` is True"),
    ({"hidden_size": 2**40}, "`hidden_size` is 1099511627776"),
    ({"vocab_size": 0}, "`vocab_size` is 0"),
    ({"vocab_size": -1}, "`vocab_size` is -1"),
    ({"vocab_size": "many"}, "`vocab_size` is 'many'"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_hidden_layers": -2}, "`num_hidden_layers` is -2"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
    ({"num_hidden_layers": [1, 2]}, "num_hidden_layers"),
    ({"num_hidden_layers": 10**7}, "`num_hidden_layers` is 10000000"),
    ({"layer_types": ["full_attention"]}, "names 1 layers"),
    ({"layer_types": 4}, "`layer_types` is 4"),
    ({"max_position_embeddings": 0}, "`max_position_embeddings` is 0"),
    ({"max_position_embeddings": "4k"}, "`max_position_embeddings` is '4k'"),
    ({"intermediate_size": -1}, "`intermediate_size` is -1"),
    ({"intermediate_size": 0}, "`intermediate_size` is 0"),
    ({"intermediate_size": "x"}, "`intermediate_size` is 'x'"),
    ({"rms_norm_eps": math.nan}, "`rms_norm_eps` is nan"),
    ({"rms_norm_eps": -1.0}, "`rms_norm_eps` is -1.0"),
    ({"rms_norm_eps": None}, "rms_norm_eps"),
    ({"hidden_act": "wiggle"}, "`hidden_act` is 'wiggle'"),
    ({"hidden_act": 3}, "hidden_act"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ({"eos_token_id": "x"}, "eos_token_id"),
    ({"pad_token_id": 10**6}, "`pad_token_id` is 1000000"),
    ({"rope_parameters": [1]}, "rope_parameters"),
    ({"partial_rotary_factor": 0}, "`partial_rotary_factor` is 0"),
    (rope(rope_theta=0), "`rope_theta` is 0"),
    (rope(rope_theta=-1e4), "`rope_theta` is -10000.0"),
    (rope(rope_theta="x"), "rope_theta"),
    (rope("spiral"), "spiral"),
    (rope("linear"), "factor"),
    (rope("linear", factor=0), "`factor` is 0"),
    (rope("yarn", factor=math.inf), "`factor` is inf"),
    (rope("dynamic", factor=-2.0), "`factor` is -2.0"),
    (rope("llama3", factor=8.0), "high_freq_factor"),
    (longrope([1.0], [1.0]), "`short_factor` has 1 numbers, and 8 frequencies to divide"),
    (longrope([1.0] * 8, [1.0] * 7), "`long_factor` has 7 numbers"),
    (longrope([1.0] * 8, [0.0] * 8), "`long_factor` is 0.0"),
    (longrope([1.0] * 8, None), "long_factor"),
    (longrope(["a"] * 8, [1.0] * 8), "short_factor"),
    (longrope([1.0] * 8, [1.0] * 8, original=0), "`original_max_position_embeddings` is 0"),
    ({"model_type": "llamma"}, "llamma"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    tiny_architecture("llama").save_pretrained(directory)
    return directory


def refusal(directory: Path) -> str:
    """The message that refuses a model, the same for plans and answers."""
    files, said = ModelFiles("tiny", directory, "a" * 64), []
    for use in (file_facts, lambda files: load(files, device="cpu", progress=Silent())):
        with pytest.raises(ModelUnavailableError) as told:
            use(files)
        said.append(told.value.message)
    assert said[0] == said[1]
    return said[0]


@pytest.mark.parametrize(("fields", "expected"), CORRUPTED, ids=lambda value: str(value)[:60])
def test_a_config_that_makes_no_sense(
    fields: dict[str, Any], expected: str, whole: Path, tmp_path: Path
) -> None:
    config = json.loads((whole / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    (tmp_path / WEIGHTS).hardlink_to(whole / WEIGHTS)
    assert expected in refusal(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.int64])
def test_weights_that_are_words(dtype: torch.dtype, whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / "config.json", tmp_path)
    tensors = load_file(whole / WEIGHTS)
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].to(dtype)
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    said = refusal(tmp_path)
    assert "model.layers.1.mlp.up_proj.weight is of" in said
    assert "does not say how its weights are quantized" in said


def test_what_makes_sense_is_taken(whole: Path, tmp_path: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    (tmp_path / WEIGHTS).hardlink_to(whole / WEIGHTS)
    for fields in (longrope([1.0] * 8, [2.0] * 8), {"num_key_value_heads": 2}, rope("linear", factor=4)):
        (tmp_path / "config.json").write_text(json.dumps(config | fields))
        assert file_facts(ModelFiles("tiny", tmp_path, "")).shape.heads == 4
