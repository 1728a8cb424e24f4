"""Models recommended for long documents: their table, what fits a machine, and the single note about them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path, PurePath

import pytest
from conftest import Run
from test_stores import in_hub_cache
from told import Notes

from adamas_cli.cli import run
from adamas_cli.commands.better import tell_better
from adamas_cli.machine.gpus import Gpu
from adamas_cli.machine.memory import Memory
from adamas_cli.models.quantizations import models_among, one_of, quantization
from adamas_cli.models.recommended import as_of, recommended
from adamas_cli.planning import fitting
from adamas_cli.settings import ModelSettings

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a GPU and without any fetched model."""
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ADAMAS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.delenv("ADAMAS_MODEL", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    on_cpu(monkeypatch, 16 * GIB)


def on_cpu(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(fitting, "device_kind", lambda _: "cpu")
    monkeypatch.setattr(fitting, "memory", lambda: Memory(available * 2, available))


def on_gpu(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(fitting, "device_kind", lambda _: "cuda")
    monkeypatch.setattr(fitting, "gpus", lambda: (Gpu("a card", size, (9, 0)),))


def test_the_table_holds_long_models_with_names_that_mean_one_file() -> None:
    assert len(as_of()) == len("2026-11")
    assert {model.memory for model in recommended()} == {"laptop", "8 GB", "12 GB", "24 GB", "80 GB"}
    for model in recommended():
        assert model.context >= 128 * 1024
        assert model.license
        file = PurePath(model.file)
        assert models_among([file]) == [file]
        assert model.name == f"{model.hub}:{quantization(file)}"
        assert one_of(model.hub, quantization(file), {file: model.bytes}) == file


def test_each_fits_a_card_of_the_size_that_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in recommended():
        if model.memory != "laptop":
            on_gpu(monkeypatch, int(model.memory.removesuffix(" GB")) * GIB)
            fits = {fit.name: fit.largest for fit in fitting.recommended_fits()}
            assert fits[model.name] >= fitting.LONG, model.title


def test_what_fits_follows_from_the_file_and_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, 8 * GIB)
    four = next(fit for fit in fitting.recommended_fits() if "Qwen3-4B" in fit.name)
    keys_and_values = 36 * 2 * 8 * 128 * 2
    codes = 34 * 8 * (4 * 8 + 2)
    assert four.largest == (8 * GIB - 2_497_280_736 - 850_000_000) // (keys_and_values + codes)


@pytest.mark.parametrize(
    ("gigabytes", "name"),
    [(4, None), (8, "Qwen3-4B"), (12, "Ministral-3-8B"), (24, "30B-A3B"), (80, "Q8_0")],
)
def test_the_best_is_the_largest_with_room_for_a_long_document(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, name: str | None
) -> None:
    on_gpu(monkeypatch, gigabytes * GIB)
    found = fitting.best()
    assert (found is None) if name is None else (found is not None and name in found.name)


def test_without_a_gpu_only_quick_ones_are_best(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, 500 * GIB)
    found = fitting.best()
    assert found is not None
    assert "Qwen3-4B" in found.name


def test_the_command_lists_them_with_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "home").mkdir()
    first = recommended()[0]
    in_hub_cache(tmp_path, first.hub, first.file)
    assert run(["models", "recommended"]) == 0
    head, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert head.split()[:3] == ["FOR", "SIZE", "CONTEXT"]
    assert [row.split()[-1] for row in rows] == [model.name for model in recommended()]
    assert rows[-1].split()[6:8] != ["whole"]
    assert run(["models", "recommended", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["fetched"] for row in told] == [True] + [False] * (len(told) - 1)
    assert told[0]["bytes"] == first.bytes
    assert told[-1]["fitting_tokens"] == 0


def test_the_default_model_says_once_what_would_be_better(tmp_path: Path) -> None:
    notes = Notes()
    tell_better(ModelSettings(), notes, quiet=True)
    tell_better(ModelSettings("smollm2-135m"), notes, quiet=False)
    assert notes.lines == []
    tell_better(ModelSettings(), notes, quiet=False)
    tell_better(ModelSettings(), notes, quiet=False)
    (told,) = notes.lines
    assert "adamas models pull bartowski/Qwen_Qwen3-4B-Instruct-2507-GGUF:Q4_K_M" in told


def test_nothing_is_said_where_nothing_better_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_cpu(monkeypatch, GIB)
    notes = Notes()
    tell_better(ModelSettings(), notes, quiet=False)
    assert notes.lines == []
    assert not (tmp_path / "cache/models").exists()


def test_an_answer_of_the_default_model_ends_with_the_note(
    run_here: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving = importlib.import_module("adamas_cli.models.resolve")  # its name is also that of a function
    monkeypatch.setattr(resolving, "default_name", lambda *_: str(tiny_model))
    document = tmp_path / "a.txt"
    document.write_text("Anna came.")
    for expected in (1, 0):
        code, answer, told = run_here("ask", document, "Who?", "-n", "2")
        assert code == 0, told
        assert told.count("adamas models recommended") == expected
        assert "recommended" not in answer
