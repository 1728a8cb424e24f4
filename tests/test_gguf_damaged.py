"""Damaged GGUF files end with one clear error, in little time and memory."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from gguf_sources import build
from gguf_writing import write_source
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_gguf_architectures import read_back

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.gguf.header import DamagedGgufError, read_header

FEW_MEGABYTES = 20_000_000
EXTREME = st.sampled_from([0, 1, 2, 3, 127, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])
FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_source("qwen3", build("qwen3"), tmp_path_factory.mktemp("whole")).read_bytes()


def header_bytes(whole: bytes, folder: Path) -> int:
    path = folder / "whole.gguf"
    path.write_bytes(whole)
    return min(entry.start for entry in read_header(path).tensors.values())


@settings(max_examples=300, deadline=None, suppress_health_check=FIXTURES)
@given(data=st.data())
def test_no_header_makes_the_reader_fail_or_take_memory(
    whole: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(whole)
    end = header_bytes(whole, tmp_path)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(4, end - 8))
        size = data.draw(st.sampled_from([1, 4, 8]))
        content[place : place + size] = struct.pack("<Q", data.draw(EXTREME))[:size]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    tracemalloc.start()
    with suppress(DamagedGgufError):
        read_header(path, ("tokenizer.ggml.tokens",))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < FEW_MEGABYTES


@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURES)
@given(data=st.data())
def test_no_key_makes_loading_fail_otherwise_than_by_one_error(
    whole: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever a key holds: the model is read, or refused."""
    content = bytearray(whole)
    key = data.draw(
        st.sampled_from(
            [
                b"qwen3.block_count",
                b"qwen3.context_length",
                b"qwen3.embedding_length",
                b"qwen3.feed_forward_length",
                b"qwen3.attention.head_count",
                b"qwen3.attention.head_count_kv",
                b"qwen3.attention.key_length",
                b"qwen3.attention.layer_norm_rms_epsilon",
                b"qwen3.rope.freq_base",
            ]
        )
    )
    place = content.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4
    content[place : place + 4] = struct.pack("<Q", data.draw(EXTREME))[:4]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    message = str(path)
    try:
        read_back(path)
    except ModelUnavailableError as error:
        message = error.message
    assert str(path) in message
    assert len(message.splitlines()) <= 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "too short"),
        (b"GGUF" + bytes(20), "version 0"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "cut short or damaged"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "cut short or damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), "cut short or damaged"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 2**62), "cut short or damaged"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "unknown kind 9"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77) + bytes(8), "unknown kind 77"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 2**31), "dimensions"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 33, 8, 0), "rows of 33"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 2**63, 0, 0), "cut short"),
        (b"GGUF" + struct.pack("<IQQQ17sII", 3, 0, 1, 17, b"general.alignment", 4, 0), "aligns"),
    ],
)
def test_each_damage_has_its_words(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelUnavailableError, match=reason):
        GgufFile(path)


def test_a_directory_or_a_missing_file_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="no file"):
        GgufFile(tmp_path / "absent.gguf")
    with pytest.raises(ModelUnavailableError):
        GgufFile(tmp_path)
