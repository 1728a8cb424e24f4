"""Every architecture: a tiny model, written as llama.cpp's converter writes it, is read back as it was."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_sources import SOURCES, VOCABULARY, build
from gguf_writing import write_source

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.gguf.architectures import ARCHITECTURES
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.gguf.loading import build_model, put_numbers
from adamas_cli.models.gguf.settings import config_of
from adamas_cli.progress import Silent

CPU = torch.device("cpu")
TOKENS = 90  # more than any window, and than any context that positions are scaled from


def read_back(path: Path) -> Any:
    file = GgufFile(path)
    settings = path.parent / "settings"
    settings.mkdir(exist_ok=True)
    (settings / "config.json").write_text(json.dumps(config_of(file, Silent())))
    return build_model(file, settings, torch.float32, CPU, put_numbers(torch.float32, CPU)).eval()


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


def test_most_architectures_are_among_those_that_are_written_here() -> None:
    written = {source.architecture for source in SOURCES.values()}
    assert written <= set(ARCHITECTURES)
    assert len(written) >= 35
