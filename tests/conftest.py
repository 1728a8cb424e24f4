"""Models that every test can afford: tiny random ones built here, and the smallest real one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from adamas_cli.models.device import has_cuda_gpu

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from adamas_cli.models import ModelFiles

if not has_cuda_gpu():
    # Read when Triton kernels are defined: without a GPU they run in its interpreter.
    os.environ["TRITON_INTERPRET"] = "1"

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several of these processes share the cores: threads of one would wait for those of the others.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


os.environ["ADAMAS_NO_DOC_CACHE"] = "1"  # no test may see what another has read
os.environ["ADAMAS_PRODUCTS"] = "features"  # no test depends on a measurement


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests marked `gpu` where there is no GPU."""
    if has_cuda_gpu():
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def plain_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps packed weights as numbers: with codes, a vector's last bit may round it to another integer."""
    from adamas_kernels.cpu import CpuBackend

    monkeypatch.setattr(CpuBackend, "quantize", CpuBackend.as_blocks)


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL_TOKENS = ["<|im_end|>", "<|im_start|>"]
TINY_CONTEXT = 4096


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 256 bytes and two control tokens, with a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in CONTROL_TOKENS])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=CONTROL_TOKENS[0])
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def tiny_architecture(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a few thousand parameters: `llama` (GQA), `qwen2` (biases) or `gemma3` (sliding
    windows).
    """
    import torch
    from transformers import (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    common = {
        "vocab_size": 256 + len(CONTROL_TOKENS),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": TINY_CONTEXT,
        "bos_token_id": None,
        "eos_token_id": 256,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    if name == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common))
    elif name == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**common))
        for layer in model.model.layers:  # biases start at zero, which would hide a missing one
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                torch.nn.init.normal_(projection.bias, std=0.5)
    elif name == "gemma3":
        windows = {
            "sliding_window": 16,
            "head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        }
        model = Gemma3ForCausalLM(Gemma3TextConfig(**common, **windows))
    else:
        raise ValueError(name)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # larger than the default, so that attention is far from uniform
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


ARCHITECTURES = ("llama", "qwen2", "gemma3")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory with a tiny random Llama, a byte-level tokenizer and a chat template."""
    directory = tmp_path_factory.mktemp("tiny-llama")
    tiny_architecture("llama").save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


class Run(Protocol):
    """Runs a command with these arguments in this process: exit code, stdout and stderr."""

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]: ...


@pytest.fixture
def run_here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """In this process: importing torch in a new one takes longer than most of these commands."""
    monkeypatch.setenv("ADAMAS_CONFIG", "/proc/adamas/config.toml")  # does not exist
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "1")  # set by every run; named here so that they are restored
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.setenv(name, "error")

    def run_command(*arguments: str | Path) -> tuple[int, str, str]:
        from adamas_cli.cli import run

        capfd.readouterr()
        with warnings.catch_warnings():
            code = run(list(map(str, arguments)))
        return (code, *capfd.readouterr())

    return run_command


@pytest.fixture(autouse=True)
def _offline_stays_in_its_test() -> Iterator[None]:
    """Undoes what `offline` sets for Hugging Face's libraries after each test."""
    before = os.environ.get("HF_HUB_OFFLINE")
    yield
    if before is None:
        os.environ.pop("HF_HUB_OFFLINE", None)
    else:
        os.environ["HF_HUB_OFFLINE"] = before


@pytest.fixture
def evaluate(run_here: Run) -> Run:
    """`adamas eval` in this process."""
    return partial(run_here, "eval")


@pytest.fixture
def bench(run_here: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`adamas bench` in this process, with a made-up copy bandwidth and no other engines."""
    from adamas_cli.lab.bench import machine, rivals

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv(rivals.LLAMA_PYTHON, raising=False)
    monkeypatch.setattr(machine, "copy_bandwidth_apart", lambda device: 8e9)
    return partial(run_here, "bench")


@pytest.fixture(scope="session")
def smollm2() -> ModelFiles:
    """The smallest real model; fetched into the user's cache if it is not there."""
    from adamas_cli.models import resolve
    from adamas_cli.progress import Silent

    return resolve("smollm2-135m", offline=False, progress=Silent())
