"""Separating thoughts from answers: each family's marks, played by a script instead of a model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHAT_TEMPLATE, Run, byte_tokenizer, tiny_architecture
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from adamas_cli.engine import timeline
from adamas_cli.engine.drawn import Drawn
from adamas_cli.models.stops import stop_ids
from adamas_cli.prompt.template import frame, load_template
from adamas_cli.prompt.thinking import CANNOT_BE_TOLD, Thinking
from adamas_cli.prompt.tokens import Tokenizer
from adamas_cli.reasoning import ReasoningSplitter, State, marks_of
from adamas_cli.session.dialogue import Dialogue, Turn
from adamas_cli.session.listener import CALLED, Listener

END = "<|im_end|>"
HARMONY = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>"]
FINAL = "<|start|>assistant<|channel|>final<|message|>"
# For each family: what precedes the reply in its template, its marks that are single tokens, a reply of its
# model, and the thought and the answer in it.
FAMILIES: dict[str, tuple[str, list[str], str, str, str]] = {
    "Qwen3": (
        "<|im_start|>assistant\n",
        ["<think>", "</think>"],
        "<think>\nHm.\n</think>\n\nAnna.",
        "Hm.",
        "Anna.",
    ),
    "Qwen3-Thinking-2507 and DeepSeek-R1": (
        "<|im_start|>assistant\n<think>\n",
        ["<think>", "</think>"],
        "Hm.\n</think>\n\nAnna.",
        "Hm.",
        "Anna.",
    ),
    "told not to think": (
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ["<think>", "</think>"],
        "Anna.",
        "",
        "Anna.",
    ),
    "DeepSeek-V3.1 without thinking": (
        "<\uff5cAssistant\uff5c></think>",
        ["<think>", "</think>"],
        "Anna <b>.",
        "",
        "Anna <b>.",
    ),
    "marks as text": ("assistant:", [], "<think>Hm.</think>Use </think> so.", "Hm.", "Use </think> so."),
    "text that looks like the token": (
        "assistant:",
        ["<think>", "</think>"],
        "`<think`>` opens.",
        "",
        "`<think`>` opens.",
    ),
    "Magistral": ("[/INST]", ["[THINK]", "[/THINK]"], "[THINK]Hm.[/THINK]Anna.", "Hm.", "Anna."),
    "Kimi": ("assistant:", ["◁think▷", "◁/think▷"], "◁think▷Hm.◁/think▷Anna.", "Hm.", "Anna."),
    "Seed-OSS": (
        "assistant\n",
        ["<seed:think>", "</seed:think>"],
        "<seed:think>Hm.</seed:think>\nAnna.",
        "Hm.",
        "Anna.",
    ),
    "Cohere": (
        "<|CHATBOT_TOKEN|>",
        ["<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"],
        "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Anna.<|END_RESPONSE|>",
        "Hm.",
        "Anna.",
    ),
    "Hunyuan": (
        "<extra_0>",
        ["<think>", "</think>"],
        "<think>\nHm.\n</think>\n<answer>\nAnna.\n</answer>",
        "Hm.",
        "Anna.",
    ),
    "ERNIE": (
        "Assistant: <think>\n",
        ["<think>", "</think>"],
        "Hm.\n</think>\n\n<response>\nAnna.\n</response>\n",
        "Hm.",
        "Anna.",
    ),
    "Gemma 4": (
        "<|turn>model\n",
        ["<|channel>", "<channel|>", "<|think|>"],
        "<|channel>thought\nHm.\n<channel|>Anna.",
        "Hm.",
        "Anna.",
    ),
    "gpt-oss": (
        "<|start|>assistant",
        HARMONY,
        f"<|channel|>analysis<|message|>Hm.<|end|>{FINAL}Anna.",
        "Hm.",
        "Anna.",
    ),
    "gpt-oss, twice": (
        "<|start|>assistant",
        HARMONY,
        f"<|channel|>analysis<|message|>H<|end|><|start|>assistant<|channel|>commentary<|message|>m.<|end|>{FINAL}A",
        "Hm.",
        "A",
    ),
    "gpt-oss, at once": ("<|start|>assistant<|channel|>final<|message|>", HARMONY, "Anna.", "", "Anna."),
    "Solar": (
        "<|begin|>assistant<|think|><|end|><|begin|>assistant",
        ["<|think|>", "<|end|>", "<|begin|>", "<|content|>", "<|flush|>"],
        "<|think|>Hm.<|end|><|begin|>assistant<|content|>Anna.",
        "Hm.",
        "Anna.",
    ),
}


def tokenizer_with(marks: Sequence[str], folder: Path, template: str = CHAT_TEMPLATE) -> Tokenizer:
    """A byte tokenizer with these added tokens, saved in the folder with its chat template."""
    wrapped = byte_tokenizer()
    wrapped.add_special_tokens({"additional_special_tokens": [AddedToken(m, special=True) for m in marks]})
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    return Tokenizer.from_directory(folder)


def heard(listener: Listener, ids: Sequence[int]) -> tuple[str, str]:
    said = {True: "", False: ""}
    parts = [part for token in ids for part in listener.feed(token)] + listener.flush()
    for reasoning, text in parts:
        assert text
        said[reasoning] += text
    return said[True].rstrip(), said[False].rstrip()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_understood(family, tmp_path):
    tail, marks, said, thought, answer = FAMILIES[family]
    tokenizer = tokenizer_with(marks, tmp_path)
    chat = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    thinking = Thinking.of(chat, tokenizer.control_tokens)
    listener = Listener(tokenizer, thinking, thinking.marks.state_behind(tail))
    assert heard(listener, tokenizer.encode_template(said).tolist()) == (thought, answer)
    assert not listener.called


CALLS = {
    "Qwen": (["<tool_call>", "</tool_call>"], 'Well.<tool_call>\n{"name": "f"}\n</tool_call>', "Well."),
    "Mistral": (["[TOOL_CALLS]"], '[TOOL_CALLS]f{"a": 1}', ""),
    "gpt-oss": (
        HARMONY,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.f<|channel|>commentary "
        '<|constrain|>json<|message|>{"a": 1}',
        "",
    ),
    "Cohere": (["<|START_ACTION|>", "<|END_ACTION|>"], "<|START_ACTION|>[{}]<|END_ACTION|>", ""),
}


@pytest.mark.parametrize("family", CALLS)
def test_the_call_of_a_tool_is_no_text_and_is_said_once(family, tmp_path):
    marks, said, answer = CALLS[family]
    tokenizer, notes = tokenizer_with(marks, tmp_path), []
    thinking = Thinking.of(PreTrainedTokenizerFast.from_pretrained(tmp_path), tokenizer.control_tokens)
    listener = Listener(tokenizer, thinking, note=notes.append)
    assert heard(listener, tokenizer.encode_template(said).tolist())[1] == answer
    assert notes == [CALLED]
    assert listener.called


def test_sentences_are_marks_where_the_template_has_them():
    template = "Here are my reasoning steps:\n{{ thought }}[BEGIN FINAL RESPONSE]{{ answer }}"
    marks = marks_of({}, template)
    splitter = ReasoningSplitter(
        marks, state=marks.state_behind("<|assistant|>\nHere are my reasoning steps:\n")
    )
    parts = splitter.feed("Hm.\n[BEGIN FINAL RESPONSE]\nAnna.[END FINAL RESPONSE]") + splitter.flush()
    assert parts == [(True, "Hm.\n"), (False, "Anna.")]
    assert marks_of({}, "").form is None


def test_marks_come_through_in_any_pieces():
    marks = marks_of({text: number for number, text in enumerate(HARMONY)}, "")
    said = FAMILIES["gpt-oss"][2]
    for text in HARMONY:
        said = said.replace(text, marks.tokens.get(HARMONY.index(text), text))
    for size in (1, 2, 3, 7, 100):
        splitter = ReasoningSplitter(marks)
        pieces = [said[start : start + size] for start in range(0, len(said), size)]
        parts = [part for piece in pieces for part in splitter.feed(piece)] + splitter.flush()
        joined = {kind: "".join(text for is_, text in parts if is_ is kind) for kind in (True, False)}
        assert joined == {True: "Hm.", False: "Anna."}


SWITCHED = CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}",
)
BY_EFFORT = "{{ reasoning_effort | default('medium') }}" + CHAT_TEMPLATE.replace(
    "<|im_start|>assistant\n", "<|start|>assistant"
)
OPENED = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
DEEPSEEK = CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}", "assistant\n{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
)
TOLD: list[tuple[str, list[str], bool | None, str]] = [
    (SWITCHED, [], False, "assistant\n<think>\n\n</think>\n\n"),
    (SWITCHED, [], True, "assistant\n"),
    (SWITCHED, [], None, "assistant\n"),
    (OPENED, [], None, "assistant\n<think>\n"),
    (OPENED, [], True, "assistant\n<think>\n"),
    (OPENED, [], False, "assistant\n<think>\n</think>\n\n"),
    (DEEPSEEK, [], True, "assistant\n<think>"),
    (DEEPSEEK, [], False, "assistant\n</think>"),
    (CHAT_TEMPLATE, ["[THINK]", "[/THINK]"], True, "assistant\n[THINK]\n"),
    (CHAT_TEMPLATE, ["[THINK]", "[/THINK]"], False, "assistant\n[THINK][/THINK]"),
    (BY_EFFORT, HARMONY, False, "<|start|>assistant<|channel|>final<|message|>"),
    (BY_EFFORT, HARMONY, True, "<|start|>assistant"),
    (CHAT_TEMPLATE, [], False, "assistant\n"),
]


@pytest.mark.parametrize(("template", "marks", "wanted", "tail"), TOLD)
def test_a_model_is_told_to_think_or_not(template, marks, wanted, tail, tmp_path):
    tokenizer, notes = tokenizer_with(marks, tmp_path, template), []
    chat = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    thinking = Thinking.of(chat, tokenizer.control_tokens, wanted=wanted)
    around = frame(load_template("ask"), chat, thinking=thinking, note=notes.append)
    assert around.tail.endswith(tail)
    assert notes == ([CANNOT_BE_TOLD] if template == CHAT_TEMPLATE and not marks else [])
    begins = thinking.marks.state_behind(around.tail)
    assert (begins is State.THOUGHT) == (tail.rstrip().endswith(("<think>", "[THINK]")))
    if template == BY_EFFORT:
        assert around.head.startswith("high" if wanted else "low")
    assert Thinking.of(chat, {}, tokens=0).wanted is False


def test_thoughts_of_earlier_turns_are_the_chat_templates_to_keep(tmp_path):
    tokenizer = tokenizer_with(HARMONY, tmp_path)
    chat = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    thinking = Thinking.of(chat, tokenizer.control_tokens)
    talk = Dialogue(load_template("ask"), chat, tokenizer, thinking=thinking)
    reply = talk.reply(tokenizer.encode_template(FAMILIES["gpt-oss"][2]).tolist())
    assert (reply.thought, reply.text) == ("Hm.", "Anna.")
    ids = talk.prompt([Turn((), "Who?", reply), Turn((), "Why?")]).ids
    texts = tokenizer.decoder(
        dict(zip(tokenizer.control_tokens.values(), tokenizer.control_tokens, strict=True))
    )
    told = "".join(map(texts.feed, ids.tolist()))
    assert f"assistant\nAnna.{END}" in told
    assert "Hm." not in told


def test_no_message_of_a_reply_ends_it(tmp_path):
    tokenizer = tokenizer_with(HARMONY, tmp_path)
    model = tiny_architecture("llama")
    model.generation_config.eos_token_id = [tokenizer.control_tokens["<|end|>"]]
    named = {tokenizer.control_tokens[text] for text in ("<|return|>", "<|call|>", END)}
    assert set(stop_ids(model, tmp_path)) == named


class Script:
    """Says these tokens one by one, in place of a model."""

    greedy = False

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: Iterator[int] = iter(ids)

    def __call__(self, *settings: Any) -> Script:
        return self

    def next(self, logits: torch.Tensor) -> Drawn:
        return Drawn(torch.tensor([next(self._ids, 65)]), torch.ones(1))

    def likelihood(self) -> None:
        """Nothing is told of a script's tokens."""

    def replace(self) -> None:
        """Another token is said than the script's."""

    def each(self, logits: torch.Tensor) -> Iterator[int]:
        return (self.next(one).id() for one in logits)


Play = Callable[[str], None]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model whose template opens a thought; a token ends it."""
    folder = tmp_path_factory.mktemp("thinker")
    tokenizer = tokenizer_with(["<think>", "</think>", "<tool_call>", "</tool_call>"], folder, OPENED)
    model = tiny_architecture("llama")
    model.resize_token_embeddings(256 + len(tokenizer.control_tokens))
    model.save_pretrained(folder)
    (folder / "book.txt").write_text("Anna came.")
    return folder


@pytest.fixture
def play(thinker: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Makes the model say a text with its marks."""
    tokenizer = Tokenizer.from_directory(thinker)

    def played(text: str) -> None:
        monkeypatch.setattr(timeline, "Sampler", Script(tokenizer.encode_template(text).tolist()))

    return played


def test_only_the_answer_is_printed(thinker: Path, play: Play, run_here: Run):
    play(f"He asks who.\n</think>\n\nAnna.{END}")
    code, out, err = run_here("ask", thinker / "book.txt", "Who?", "-m", thinker, "-n", 60)
    assert (code, out) == (0, "Anna.\n")
    assert "He asks who." in err


def test_an_answer_that_was_only_thought_is_an_error(thinker: Path, play: Play, run_here: Run):
    play(f"Hm.{END}")
    code, out, err = run_here("ask", thinker / "book.txt", "Who?", "-m", thinker, "-n", 60)
    assert (code, out.strip()) == (1, "")
    assert "there is no answer" in err
    play(f"Hm.{END}")
    code, out, err = run_here("ask", thinker / "book.txt", "Who?", "-m", thinker, "--json")
    record = json.loads(out)
    assert (code, record["answer"], record["reasoning"]) == (1, "", "Hm.")
    assert "there is no answer" in record["error"]["message"]


def test_a_thought_that_has_taken_its_tokens_is_ended(thinker: Path, play: Play, run_here: Run):
    play("x" * 8 + "....." + f"Anna.{END}")  # the dots are drawn while the mark is inserted
    code, out, err = run_here(
        "ask", thinker / "book.txt", "Who?", "-m", thinker, "-n", 60, "--think-tokens", 8, "--json"
    )
    record = json.loads(out)
    assert (code, record["reasoning"]) == (0, "x" * 8)
    assert record["answer"].lstrip(".") == "Anna."
    assert "stopped after 8 tokens: --think-tokens" in err


def test_a_chat_is_told_to_think_or_not(thinker: Path, play: Play, run_here: Run, monkeypatch):
    play(f"Hm.</think>Anna.{END}Bob.{END}")
    lines = io.BytesIO(b"Who?\n/think off\nAnd?\n/think 5\n/think maybe\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(lines))
    code, out, err = run_here("chat", thinker / "book.txt", "-m", thinker, "-n", 40)
    assert out.split() == ["Anna.", "Bob."]
    assert "the model answers without thinking" in err
    assert "for example: /think 500" in err
    assert code == 2
