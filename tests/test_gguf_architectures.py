"""Every architecture: a tiny model, written as by llama.cpp's converter, is read back unchanged."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_sources import SOURCES, VOCABULARY, build
from gguf_writing import add, write_source

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.filling import Numbers, Placing
from adamas_cli.models.gguf.architectures import ARCHITECTURES
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.gguf.rows import FileRows
from adamas_cli.models.gguf.settings import config_of
from adamas_cli.models.gguf.stored import Stored, joined
from adamas_cli.models.gguf_model import build_model
from adamas_cli.models.packed import Blocks
from adamas_cli.models.packed_experts import PackedExperts
from adamas_cli.models.shape import count_tensors
from adamas_cli.progress import Silent

CPU = torch.device("cpu")
TOKENS = 90  # more than any window, and than any context that positions are scaled from


def read_back(path: Path, placing: Placing | None = None) -> Any:
    file = GgufFile(path)
    settings = path.parent / "settings"
    settings.mkdir(exist_ok=True)
    (settings / "config.json").write_text(json.dumps(config_of(file, Silent())))
    return build_model(file, settings, torch.float32, CPU, placing or Numbers(torch.float32, CPU)).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(0, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(3))
    return model(ids, use_cache=False).logits


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_read_computes_what_was_written(name: str, tmp_path: Path) -> None:
    model = build(name)
    expected = logits(model)
    found = logits(read_back(write_source(name, model, tmp_path)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "gpt_oss"])
def test_experts_in_their_blocks_compute_what_was_written(name: str, tmp_path: Path) -> None:
    model = build(name)
    expected = logits(model)
    found = read_back(write_source(name, model, tmp_path), Blocks(Silent(), rounds=False))
    assert any(isinstance(module, PackedExperts) for module in found.modules())
    assert not any(parameter.is_meta for parameter in found.parameters())
    torch.testing.assert_close(
        logits(found), expected, rtol=0, atol=1e-4 * max(1.0, float(expected.abs().max()))
    )


@pytest.mark.parametrize("name", ["llama", "llama_tied", "mixtral", "gpt_oss"])
def test_a_plan_counts_the_numbers_that_the_file_has(name: str, tmp_path: Path) -> None:
    model = build(name)
    count = count_tensors(GgufFile(write_source(name, model, tmp_path)).shapes())
    assert count.tied == bool(model.config.tie_word_embeddings)
    assert count.bytes(1) == sum(parameter.numel() for parameter in model.parameters())


def test_most_architectures_are_among_those_that_are_written_here() -> None:
    written = {source.architecture for source in SOURCES.values()}
    assert written <= set(ARCHITECTURES)
    assert len(written) >= 35


# what is refused


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source("llama", build("llama"), tmp_path_factory.mktemp("llama"))


def rewritten(
    source: Path, target: Path, keys: dict[str, Any] | None = None, without: str = "", renamed: str = ""
) -> Path:
    """A copy of a file with more keys, and without a tensor or with it renamed."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, found in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            add(writer, name, found.contents())
    for name, value in (keys or {}).items():
        add(writer, name, value)
    for tensor in reader.tensors:
        if tensor.name == without and not renamed:
            continue
        writer.add_tensor(renamed if tensor.name == without else tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("llama.attn_logit_softcapping", 50.0, "attn_logit_softcapping"),
        ("llama.attention.scale", 0.3, "attention.scale"),
        ("llama.rope.scaling.type", "of-tomorrow", "of-tomorrow"),
        ("llama.attention.value_length", 8, "values"),
        ("llama.attention.head_count_kv", [2, 2, 1, 2], "differ in attention.head_count_kv"),
        ("llama.attention.causal", False, "encoder"),
        ("llama.attention.head_count", "four", "is 'four'"),
        ("llama.attention.head_count", 1 << 30, "is 1073741824"),
        ("llama.block_count", 9, "tensors of 4 layers"),
        ("llama.rope.freq_base", "ten", "no valid model"),
        ("llama.attention.layer_norm_rms_epsilon", "small", "no valid model"),
    ],
)
def test_a_key_that_changes_the_model_and_cannot_be_followed_refuses_the_file(
    llama: Path, tmp_path: Path, key: str, value: Any, reason: str
) -> None:
    with pytest.raises(ModelUnavailableError, match=reason):
        read_back(rewritten(llama, tmp_path / "other.gguf", {key: value}))


def test_a_key_that_nobody_knows_is_named_where_everything_is(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = rewritten(llama, tmp_path / "other.gguf", {"llama.of_tomorrow": 7, "llama.attention.scale": 0.0})
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    config_of(GgufFile(path), Notes())
    assert notes == []
    with caplog.at_level(logging.INFO, "adamas_cli.models.gguf.settings"):
        config_of(GgufFile(path), Notes())
    assert notes == ["other.gguf: unknown keys: llama.of_tomorrow"]


def test_tensors_that_lack_or_are_too_many_are_named(llama: Path, tmp_path: Path) -> None:
    lacking = rewritten(llama, tmp_path / "lacking.gguf", without="blk.2.ffn_up.weight")
    with pytest.raises(ModelUnavailableError, match=r"lacks the tensor blk\.2\.ffn_up\.weight"):
        read_back(lacking)
    surplus = rewritten(llama, tmp_path / "more.gguf", without="output.weight", renamed="blk.1.other.weight")
    with pytest.raises(ModelUnavailableError, match=r"has the tensor blk\.1\.other\.weight"):
        read_back(surplus)
    with pytest.raises(ModelUnavailableError, match=r"q_proj\.weight is \[64, 64\]"):
        read_back(rewritten(llama, tmp_path / "shape.gguf", {"llama.attention.head_count": 8}))


def test_an_architecture_without_a_model_is_named(llama: Path, tmp_path: Path) -> None:
    path = rewritten(llama, tmp_path / "other.gguf", {"general.architecture": "rwkv7"})
    with pytest.raises(ModelUnavailableError, match="rwkv7"):
        read_back(path)


# several files


def parts(source: Path, folder: Path, count: int) -> list[Path]:
    """Splits a file as llama.cpp does: the first part holds the keys, and each part its number and count."""
    reader = gguf.GGUFReader(source)
    folder.mkdir()
    paths = [folder / f"tiny-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1)]
    for part, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama")
        for name, found in reader.fields.items() if part == 0 else ():
            if not name.startswith("GGUF.") and name != "general.architecture":
                add(writer, name, found.contents())
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[part::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


@pytest.mark.parametrize("given", [0, 2])
def test_any_part_opens_all(llama: Path, tmp_path: Path, given: int) -> None:
    split = parts(llama, tmp_path / "parts", 3)
    torch.testing.assert_close(logits(read_back(split[given])), logits(read_back(llama)), rtol=0, atol=0)


def test_a_part_that_is_missing_is_named(llama: Path, tmp_path: Path) -> None:
    split = parts(llama, tmp_path / "parts", 3)
    split[1].unlink()
    with pytest.raises(ModelUnavailableError, match=r"tiny-00002-of-00003\.gguf is missing"):
        GgufFile(split[2])


def test_a_part_under_another_name_is_not_taken_for_the_whole(llama: Path, tmp_path: Path) -> None:
    split = parts(llama, tmp_path / "parts", 3)
    alone = split[0].rename(split[0].with_name("tiny.gguf"))
    with pytest.raises(ModelUnavailableError, match="one of 3 parts"):
        GgufFile(alone)


def test_a_part_that_was_exchanged_is_noticed(llama: Path, tmp_path: Path) -> None:
    split = parts(llama, tmp_path / "parts", 3)
    split[2].write_bytes(split[1].read_bytes())
    with pytest.raises(ModelUnavailableError, match="two of its parts have"):
        GgufFile(split[0])


# blocks


def test_quantized_rows_are_taken_in_their_blocks() -> None:
    """Picked rows, parts and joins hold the same numbers, still quantized."""
    numbers = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    data = torch.from_numpy(gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.Q8_0)).flatten()
    whole = Stored("Q8_0", data, (8, 64))
    order = torch.tensor([5, 0, 7])
    for found, expected in [
        (whole.pick(order), whole.numbers()[order]),
        (whole.part(2, 4), whole.numbers()[2:4]),
        (joined([whole, whole.part(0, 1)]), torch.cat((whole.numbers(), whole.numbers()[:1]))),
        (whole.pick_columns(torch.arange(64).view(2, 32).flip(0).flatten()), whole.numbers().roll(32, 1)),
    ]:
        assert found.kind == "Q8_0"
        assert torch.equal(found.numbers(), expected)
        assert found.shape == tuple(expected.shape)
    mixed = whole.pick_columns(torch.arange(64).flip(0))
    assert torch.equal(mixed.numbers(), whole.numbers().flip(1))
    stacked = joined([whole.of_shape(2, 4, 64)] * 2, axis=1)
    assert torch.equal(stacked.numbers(), torch.cat([whole.numbers().view(2, 4, 64)] * 2, 1))
    with pytest.raises(ValueError, match="cannot be cut"):
        whole.of_shape(16, 32)


def test_embeddings_are_read_row_by_row(llama: Path) -> None:
    table = read_back(llama).get_input_embeddings()
    assert isinstance(table, FileRows)
    expected = GgufFile(llama).tensor("token_embd.weight").numbers()
    ids = torch.tensor([[3, 3, 95], [0, 7, 3]])
    assert torch.equal(table(ids), expected[ids])
    assert table(ids[:, :0]).shape == (2, 0, 64)
    with pytest.raises(IndexError, match="96"):
        table(torch.tensor([96]))
    with pytest.raises(IndexError, match="-1"):
        table(torch.tensor([-1]))
