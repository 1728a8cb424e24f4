"""Models like Llama without transformers' classes: the same numbers, and none of what those import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from conftest import tiny_architecture
from gguf_sources import SOURCES, VOCABULARY, build
from gguf_writing import write_source
from loaded import Loaded
from test_gguf_architectures import read_back
from test_models_gguf import write_gguf
from torch.torch_version import TorchVersion
from transformers import AutoConfig

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.models.llama_like import FORMS, LlamaLike, serves

OURS = [name for name, source in SOURCES.items() if source.model_type in FORMS]
READ, CHUNK = 60, 25  # tokens


def both(name: str, dtype: torch.dtype) -> tuple[Any, LlamaLike]:
    """transformers' model, and ours with its weights."""
    theirs = build(name).requires_grad_(False)
    for parameter in theirs.parameters():  # frequencies stay as they are
        parameter.data = parameter.data.to(dtype)
    ours = LlamaLike(theirs.config, dtype)
    with torch.no_grad():
        ours.load_state_dict(theirs.state_dict())
    return theirs, ours.eval().requires_grad_(False)


def logits_in_chunks(model: Any, attention: AttentionSettings) -> torch.Tensor:
    """The logits after a text and an answer to it, by a timeline."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, READ).astype(np.int32)
    timeline = Timeline(Loaded(model, dtype=model.dtype), attention, context=2 * READ, prefill_chunk=CHUNK)
    list(timeline.read(ids))
    list(timeline.answer(ids[:3], Sampling(), 4, (), keep=True))
    return timeline.logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_a_pass_gives_the_numbers_of_transformers(name: str, dtype: torch.dtype) -> None:
    theirs, ours = both(name, dtype)
    for attention in (AttentionSettings("full"), AttentionSettings("adamas", SparseSettings(budget=16))):
        assert torch.equal(logits_in_chunks(ours, attention), logits_in_chunks(theirs, attention))


@pytest.mark.parametrize("name", OURS)
def test_a_call_outside_a_pass_attends_causally(name: str) -> None:
    theirs, ours = both(name, torch.float32)
    ids = torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(3))
    expected = theirs(ids, use_cache=False).logits
    for attached in (False, True):
        if attached:
            Timeline(Loaded(ours), AttentionSettings("full"), context=8, prefill_chunk=8)
        torch.testing.assert_close(ours(ids).logits, expected)
        torch.testing.assert_close(ours(ids, logits_to_keep=1).logits, expected[:, -1:])


@pytest.mark.parametrize("name", OURS)
def test_the_files_of_these_types_become_such_models(name: str, tmp_path: Path) -> None:
    assert isinstance(read_back(write_source(name, build(name), tmp_path)), LlamaLike)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mixtral", {}),
        ("smollm3", {}),
        ("llama", {"hidden_act": "gelu"}),
        ("mistral", {"sliding_window": 16}),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                       "partial_rotary_factor": 0.5}}),
    ],
)  # fmt: skip
def test_what_is_not_written_down_here_is_left_to_transformers(kind: str, changes: dict[str, Any]) -> None:
    common = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    assert not serves(AutoConfig.for_model(kind, **common, **changes))


# What is imported for any of transformers' model classes; older torch imports most of it by itself.
CLASSES = "transformers.modeling_utils"
COMPILER = (
    "accelerate", "sympy", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torchao", "triton"
)  # fmt: skip
UNUSED = (CLASSES, *COMPILER) if torch.__version__ >= TorchVersion("2.13") else (CLASSES,)
ANSWERS = """
import sys
from adamas_cli.cli import run
code = run(sys.argv[1:])
print(*(name for name in {unused} if name in sys.modules), sep=",", end=";")
from transformers import AutoConfig, AutoModelForCausalLM
import torch
small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **small))
print(code, list(model.generate(torch.tensor([[1, 2]]), max_new_tokens=3, min_new_tokens=3).shape))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's kernels serve a GPU")
def test_an_answer_imports_no_compiler_and_transformers_models_still_work(tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "tiny.gguf", model=tiny_architecture("qwen2"))
    text = tmp_path / "text.txt"
    text.write_text("hello hello\n")
    command = ["ask", text, "hello?", "-m", gguf, "-n", "3", "-o", tmp_path / "answer.txt", "--attn", "full"]
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS.format(unused=UNUSED), *map(str, command)],
        env={**os.environ, "ADAMAS_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ";0 [1, 5]\n", done.stderr
