"""A GGUF file becomes the same model, tokenizer and settings, or one clear error."""

from __future__ import annotations

import importlib
import json
import struct
import threading
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from conftest import CHAT_TEMPLATE, CONTROL_TOKENS, tiny_architecture
from told import Notes

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models import ModelFiles, load, resolve
from adamas_cli.models.fetch import sha256_of
from adamas_cli.models.gguf import settings
from adamas_cli.models.gguf.header import DamagedGgufError, read_header
from adamas_cli.progress import Silent

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}
MERGES = [
    "h e",
    "l l",
    "he ll",
    "hell o",
    "1 2",
    "c Ģ",
]  # the last one joins the first bytes of a letter and of its accent


def vocabulary() -> list[str]:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return letters + [merge.replace(" ", "") for merge in MERGES]


def write_gguf(path: Path, rule: str = "qwen2", model: Any = None, unused: int = 0, **keys: Any) -> Path:
    """A whole GGUF file: `model` (a tiny random Qwen2 if None), grown to a byte-level vocabulary."""
    model = model or tiny_architecture("qwen2")
    config = model.config
    writer = gguf.GGUFWriter(path, keys.get("architecture", "qwen2"))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    words = vocabulary()
    padding = [f"[PAD{id_}]" for id_ in range(unused)]
    tokens = words + CONTROL_TOKENS + ["<tool>"] + padding
    model.resize_token_embeddings(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(words) + [3] * len(CONTROL_TOKENS) + [4] + [5] * unused)
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(len(words))
    writer.add_add_bos_token(keys.get("add_bos", False))
    writer.add_bos_token_id(len(words) + 1)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in model.state_dict().items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, tensor.to(torch.float32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # restores what --offline sets
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def damaged(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    return path


def settle(path: Path) -> Path:
    return settings.write_settings(path, sha256_of(path, Silent()), Silent())


# the header


def test_the_header_agrees_with_the_gguf_package(whole: Path) -> None:
    reader = gguf.GGUFReader(whole)
    arrays = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")
    header = read_header(whole, arrays)
    assert {
        name: (entry.shape, entry.start, entry.bytes, entry.kind) for name, entry in header.tensors.items()
    } == {
        tensor.name: (
            tuple(int(length) for length in reversed(tensor.shape)),
            int(tensor.data_offset),
            int(tensor.n_bytes),
            tensor.tensor_type.name,
        )
        for tensor in reader.tensors
    }
    assert header.end <= whole.stat().st_size < header.end + 32
    assert header.keys == {
        name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")
    }


def test_arrays_that_nobody_asked_for_are_only_counted(whole: Path) -> None:
    keys = read_header(whole).keys
    assert keys["tokenizer.ggml.merges"] == len(MERGES)
    assert keys["general.architecture"] == "qwen2"
    assert keys["tokenizer.chat_template"] == CHAT_TEMPLATE


@pytest.mark.parametrize("size", [0, 3, 23, 24, 100, 3000])
def test_a_header_cut_anywhere_is_damaged(whole: Path, tmp_path: Path, size: int) -> None:
    with pytest.raises(DamagedGgufError, match="short"):
        read_header(damaged(tmp_path, whole.read_bytes()[:size]))


def test_other_files_versions_and_kinds_are_named(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(DamagedGgufError, match="does not start"):
        read_header(damaged(tmp_path, b"PK\3\4" * 100))
    with pytest.raises(DamagedGgufError, match="version 99"):
        read_header(damaged(tmp_path, b"GGUF" + struct.pack("<I", 99) + whole.read_bytes()[8:]))


# the model


def read(path: Path, dtype: str = "float32") -> Any:
    files = resolve(str(path), device="cpu", offline=True, progress=Silent())
    return load(files, device="cpu", dtype=dtype, quantization="none", progress=Silent())


def test_the_model_is_the_one_that_was_written(tmp_path: Path, cache: Path) -> None:
    model = tiny_architecture("qwen2")
    loaded = read(write_gguf(tmp_path / "tiny.gguf", model=model))
    ids = torch.arange(200).reshape(1, -1)
    torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    assert loaded.context_length == model.config.max_position_embeddings
    assert loaded.stop_ids == (len(vocabulary()),)
    assert not list(cache.rglob("*.safetensors"))


def test_weights_come_in_the_number_format_that_was_asked_for(whole: Path) -> None:
    model = read(whole, "bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(torch.arange(9)[None]).logits.dtype is torch.bfloat16


def test_settings_are_made_once(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = settle(whole)
    monkeypatch.setattr(settings, "GgufFile", None)
    assert settle(whole) == folder
    assert json.loads((folder / "adamas.json").read_text())["file"] == "tiny.gguf"
    assert {path.name for path in folder.iterdir()} >= {"config.json", "tokenizer.json"}


def test_transformers_is_as_loud_afterwards_as_before(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    read(whole)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("lost", [200, 5000])
def test_a_cut_file_is_one_clear_error_and_leaves_nothing(
    whole: Path, tmp_path: Path, cache: Path, lost: int
) -> None:
    path = damaged(tmp_path, whole.read_bytes()[:-lost])
    with pytest.raises(ModelUnavailableError, match="cut short") as caught:
        resolve(str(path), device="cpu", offline=True, progress=Silent())
    assert len(caught.value.message.splitlines()) <= 2
    assert not [path for path in cache.glob("models/settings/*") if path.is_dir()]


def test_an_unknown_architecture_is_one_clear_error(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", architecture="of-tomorrow")
    with pytest.raises(ModelUnavailableError, match="of-tomorrow") as caught:
        settle(path)
    assert len(caught.value.message.splitlines()) <= 2
    assert not [path for path in cache.glob("models/settings/*") if path.is_dir()]


def test_what_an_interrupted_start_left_does_not_matter(whole: Path) -> None:
    folder = settings.settings_folder(sha256_of(whole, Silent()))
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.mkdir(parents=True)
    (unfinished / "config.json").write_text("half of")
    assert settle(whole) == folder
    assert not unfinished.exists()


def test_two_at_once_write_once(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    write_once = settings._write
    monkeypatch.setattr(settings, "_write", lambda *given: (calls.append(given), write_once(*given)))
    threads = [threading.Thread(target=settle, args=(whole,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_weights_that_earlier_versions_unpacked_are_removed_with_a_note(whole: Path, cache: Path) -> None:
    earlier = cache / "models" / "weights" / "0123456789abcdef-float32-1"
    earlier.mkdir(parents=True)
    (earlier / "model.safetensors").write_bytes(bytes(3_000_000))
    notes = Notes()
    resolve(str(whole), device="cpu", offline=True, progress=notes)
    assert "freed 3 MB" in notes.lines[0]
    assert not earlier.exists()
    resolve(str(whole), device="cpu", offline=True, progress=notes)
    assert len(notes.lines) == 1


def test_a_local_file_is_hashed_once(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    module = importlib.import_module("adamas_cli.models.resolve")
    monkeypatch.setattr(
        module, "sha256_of", lambda path, progress: hashed.append(path) or sha256_of(path, progress)
    )
    first, second = (resolve(str(whole), device="cpu", offline=True, progress=Silent()) for _ in range(2))
    assert first == second
    assert first.fingerprint == sha256_of(whole, Silent())
    assert hashed == [whole]


# the real thing


def test_smollm2_is_what_its_publisher_made(smollm2: ModelFiles) -> None:
    """Results of SmolLM2-135M-Instruct's own tokenizer and settings, which a GGUF file only implies."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.directory)
    assert tokenizer.tokenize("In 1813, hello") == ["In", "Ġ", "1", "8", "1", "3", ",", "Ġhello"]
    loaded = load(smollm2, device="cpu", dtype="float32", progress=Silent())
    assert loaded.context_length == 8192
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in loaded.stop_ids
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"
