"""The Python interface, as the manual shows it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

import adamas_cli
from adamas_cli.errors import NothingReadableError, OverContextError, UsageError
from adamas_cli.store.settings import StoreSettings

ROOT = Path(__file__).parents[1]
FABLE = "A fox saw grapes that hung too high. It jumped and jumped. At last it said that they were sour. "


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> adamas_cli.Model:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.setenv(name, "error")  # set by every load; named here so that they are restored
    return adamas_cli.load(str(tiny_model), device="cpu", max_tokens=12)


@pytest.fixture
def fable(tmp_path: Path) -> Path:
    path = tmp_path / "fable.txt"
    path.write_text(FABLE * 8, encoding="utf-8")
    return path


def test_a_document_is_read_once_and_answers_twice(model: adamas_cli.Model, fable: Path) -> None:
    with model.open(fable) as book:
        (path, tokens) = next(iter(book.tokens.items()))
        first, again = book.ask("What does the fox want?"), book.ask("What does the fox want?")
    assert (path, first.text) == (str(fable), again.text)
    assert first.done.reused_tokens == 0
    assert again.done.reused_tokens >= tokens
    with model.open(fable) as book:  # again, from the disk
        assert book.ask("What does the fox want?").text == first.text


def test_events_are_streamed_and_end_with_done(model: adamas_cli.Model, fable: Path) -> None:
    with model.open(fable) as book:
        events = list(book.stream("What does the fox want?"))
        text = book.ask("What does the fox want?").text
    assert isinstance(events[0], adamas_cli.Prefill)
    assert isinstance(events[-1], adamas_cli.Done)
    assert sum(isinstance(event, adamas_cli.Token) for event in events) == events[-1].completion_tokens
    assert "".join(event.text for event in events if isinstance(event, adamas_cli.Text)).rstrip() == text


def test_two_documents_of_one_model_may_take_turns(model: adamas_cli.Model, fable: Path) -> None:
    with model.open(fable) as one, model.open(text="Another text altogether. " * 9) as other:
        alone = [one.ask("Why?").text, other.ask("Why?").text]
        both = zip_longest(one.stream("Why?"), other.stream("Why?"))
        said: list[list[str]] = [[], []]
        for pair in both:
            for pieces, event in zip(said, pair, strict=True):
                if isinstance(event, adamas_cli.Text):
                    pieces.append(event.text)
    assert ["".join(pieces).rstrip() for pieces in said] == alone


def test_what_is_wrong_is_raised(model: adamas_cli.Model, tmp_path: Path, fable: Path) -> None:
    with pytest.raises(UsageError, match="There is no file or folder"):
        model.open(tmp_path / "nothing.txt")
    with pytest.raises(UsageError, match="paths or a text"):
        model.open()
    with pytest.raises(NothingReadableError):
        model.open(text="")
    with pytest.raises(OverContextError):
        model.open(text="word " * 40_000)
    with model.open(fable) as book, pytest.raises(UsageError, match="empty"):
        book.ask(" ")
    with pytest.raises(TypeError, match="no setting 'colour'; there are: adapter, apart, attn, backend"):
        adamas_cli.load("smollm2-135m", colour="red")


def test_settings_are_those_of_the_command_line(tiny_model: Path, fable: Path) -> None:
    chosen = adamas_cli.load(
        str(tiny_model), device="cpu", attn="adamas", budget=64, max_tokens=5, store=StoreSettings(off=True)
    )
    with chosen.open(fable) as book:
        book.ask("Why?")
        assert book.ask("Why?").done.completion_tokens <= 5


def test_the_names_are_there_without_torch() -> None:
    script = (
        "import sys, json, adamas_cli; names = set(adamas_cli.__all__); assert 'torch' not in sys.modules\n"
        "print(json.dumps([name for name in names if getattr(adamas_cli, name) is None]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = adamas_cli.lode  # type: ignore[attr-defined]


def test_the_readme_shows_what_runs(
    tiny_model: Path, tmp_path: Path, fable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "scripting.md").read_text(encoding="utf-8"), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    fable.rename(tmp_path / "book.txt")
    assert '"qwen2.5-coder-0.5b"' in block
    exec(block.replace('"qwen2.5-coder-0.5b"', f'{str(tiny_model)!r}, device="cpu", max_tokens=8'), {})
