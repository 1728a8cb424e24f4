"""Thinking models through the whole command: their own templates, and a script in place of the model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest
import torch
from conftest import Run, byte_tokenizer
from test_thinking import Script
from thinking_templates import THINKERS
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM

from adamas_cli.engine import timeline
from adamas_cli.prompt.chat import ChatTemplateFile
from adamas_cli.prompt.template import Frame, frame, load_template
from adamas_cli.prompt.thinking import Thinking
from adamas_cli.prompt.tokens import Tokenizer
from adamas_cli.session.listener import Listener

VOCABULARY = 288  # bytes and a family's additions


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of one layer; a script speaks for it."""
    folder = tmp_path_factory.mktemp("weights")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048, bos_token_id=None,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=THINKERS)
def folder(request: pytest.FixtureRequest, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family's model, in a folder of its name."""
    row, made = THINKERS[request.param], tmp_path_factory.mktemp("models") / request.param
    shutil.copytree(weights, made)
    wrapped = byte_tokenizer()
    controls = [AddedToken(text, special=True) for text in row.tokens]
    wrapped.add_special_tokens({"additional_special_tokens": controls})
    wrapped.add_tokens([AddedToken(text, special=False) for text in row.words])
    wrapped.eos_token = row.end
    wrapped.bos_token = row.tokens[0]
    wrapped.chat_template = row.template
    wrapped.save_pretrained(made)
    (made / "book.txt").write_text("Anna came.")
    return made


Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(folder: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Asks the model, which says a text with its marks and then ends its reply."""
    tokenizer = Tokenizer.from_directory(folder)

    def asked(said: str, *options: str) -> tuple[int, str, str]:
        ids = tokenizer.encode_template(said + THINKERS[folder.name].end).tolist()
        monkeypatch.setattr(timeline, "Sampler", Script(ids))
        return run_here("ask", folder / "book.txt", "Who?", "-m", folder, "-n", "60", *options)

    return asked


def test_the_answer_alone_is_printed(folder: Path, ask: Ask) -> None:
    code, out, err = ask(THINKERS[folder.name].said)
    assert (code, out) == (0, "Anna.\n")
    assert "Hm." in err
    assert "think>" not in err.lower()


def framed(folder: Path, wanted: bool | None = None) -> Frame:
    chat, tokenizer = ChatTemplateFile(folder), Tokenizer.from_directory(folder)
    thinking = Thinking.of(chat, tokenizer.control_tokens, wanted=wanted)
    return frame(load_template("ask"), chat, thinking=thinking)


def test_prompts_end_as_the_model_is_to_go_on(folder: Path) -> None:
    row = THINKERS[folder.name]
    assert framed(folder).tail.endswith(row.tail)
    assert framed(folder, wanted=False).tail.endswith(row.without)


def test_what_stands_before_documents_is_the_same_all_year(folder: Path) -> None:
    head = framed(folder).head
    told = re.findall(r"date: (.+)", head, re.IGNORECASE)
    assert bool(told) == ("strftime_now" in THINKERS[folder.name].template)
    year = date.today().year
    assert set(told) <= {f"{year}-01-01", f"01 January {year}"}


def heard(folder: Path, said: str, wanted: bool | None = None) -> tuple[str, str]:
    """The thought and the answer of a reply to a prompt."""
    tokenizer = Tokenizer.from_directory(folder)
    thinking = Thinking.of(ChatTemplateFile(folder), tokenizer.control_tokens, wanted=wanted)
    begins = thinking.marks.state_behind(framed(folder, wanted).tail)
    listener = Listener(tokenizer, thinking, begins)
    ids = tokenizer.encode_template(said).tolist()
    parts = [part for token in ids for part in listener.feed(token)] + listener.flush()
    thought, answer = ("".join(text for is_, text in parts if is_ is kind).strip() for kind in (True, False))
    return thought, answer


def test_a_reply_without_a_thought_is_an_answer(folder: Path) -> None:
    assert heard(folder, "Anna.", wanted=False) == ("", "Anna.")


def test_a_reply_that_ends_within_a_thought_is_no_answer(folder: Path) -> None:
    assert heard(folder, THINKERS[folder.name].thought) == ("Hm.", "")
