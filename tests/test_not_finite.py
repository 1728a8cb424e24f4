"""Weights that are not finite: answers end with a message, however they are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from conftest import Run, byte_tokenizer, tiny_architecture
from transformers import PreTrainedModel

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.errors import NotFiniteError
from adamas_cli.lab.eval.divergence import diverge
from adamas_cli.models import ModelFiles, load
from adamas_cli.progress import Silent

FULL = AttentionSettings("full")
SPARSE = AttentionSettings("adamas", SparseSettings(budget=32))
DOCUMENT = np.random.default_rng(0).integers(2, 250, 300).astype(np.int32)
GREEDY, DRAWN = Sampling(), Sampling(0.8, top_p=0.9, top_k=20, min_p=0.01, seed=1)
# A part of the first sparse layer, and the head after all layers.
PLACES = ("model.layers.2.self_attn.k_proj", "lm_head")


def damaged(place: str, number: float, part: Any = ...) -> PreTrainedModel:
    """A tiny model with one weight set to this number, in whole or in part."""
    model = tiny_architecture("llama")
    with torch.no_grad():
        model.get_submodule(place).weight[part] = number
    return model


def kept(model: PreTrainedModel, directory: Path) -> ModelFiles:
    model.save_pretrained(directory)
    return ModelFiles("tiny", directory, "a" * 64)


@pytest.mark.parametrize(("number", "quantization"), [(float("nan"), "packed"), (float("inf"), "none")])
@pytest.mark.parametrize("place", PLACES)
def test_an_answer_ends(place: str, number: float, quantization: str, tmp_path: Path) -> None:
    files = kept(damaged(place, number), tmp_path)
    model = load(files, device="cpu", dtype="float32", quantization=quantization, progress=Silent())
    for attention in (FULL, SPARSE):
        timeline = Timeline(model, attention, context=400)
        with pytest.raises(NotFiniteError):  # before any step
            list(timeline.read(DOCUMENT))
        for sampling in (GREEDY, DRAWN):
            with pytest.raises(NotFiniteError):
                list(timeline.answer(DOCUMENT[:3], sampling, 3, ()))
    # Codes of keys that are NaN select no token outside of the cache.
    timeline.score(DOCUMENT[:3], sparse=True)


def test_an_answer_ends_where_drafts_are_checked(tmp_path: Path) -> None:
    """Only one row of the head is damaged, as by a broken block of a file."""
    files = kept(damaged("lm_head", float("nan"), 7), tmp_path)
    model = load(files, device="cpu", dtype="float32", progress=Silent())
    timeline = Timeline(model, FULL, context=400, drafts="text")
    with pytest.raises(NotFiniteError):
        list(timeline.read(DOCUMENT))
    with pytest.raises(NotFiniteError):
        list(timeline.answer(DOCUMENT[:3], GREEDY, 3, ()))
    logits = timeline.score(DOCUMENT[:3], sparse=False)
    with pytest.raises(NotFiniteError):
        diverge(logits, logits, torch.from_numpy(DOCUMENT[1:4].astype(np.int64)))


def test_the_command_says_so(tmp_path: Path, run_here: Run) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    kept(damaged("model.norm", float("nan")), tmp_path)
    document = tmp_path / "a.txt"
    document.write_text("Text. " * 20)
    code, out, err = run_here("ask", document, "What?", "-m", tmp_path, "--device", "cpu")
    assert (code, out) == (5, ""), err
    assert "the model's numbers are not finite" in err
    assert "Exception ignored" not in err
