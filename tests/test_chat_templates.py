"""Unusual chat templates: without a system role, with lists of parts, missing, or broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from string import Template

import pytest
from conftest import CHAT_TEMPLATE, CONTROL_TOKENS, byte_tokenizer
from test_chat_dialogue import File, dialogue, documents, replied, shown, tokenizer  # noqa: F401 - a fixture
from test_cli import Runner, adamas, book  # noqa: F401 - fixtures

from adamas_cli.errors import ModelUnavailableError, UsageError
from adamas_cli.prompt.chat import ChatTemplateFile
from adamas_cli.prompt.messages import AS_LISTS, NO_SYSTEM, NO_TEMPLATE
from adamas_cli.prompt.opening import text_start
from adamas_cli.prompt.template import frame
from adamas_cli.session.dialogue import Turn

ASK = Template("$documents\n\n$question")
END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# Like Gemma's, like Mistral's first, and one that drops it without a word.
REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHAT_TEMPLATE
)
ALTERNATES = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}" + END
)
DROPS = CHAT_TEMPLATE.replace(
    "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
)
# Like those of models that see pictures.
LISTS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}" + END
)
LISTS_BY_KEY = LISTS.replace("part.type", "part['type']").replace("part.text", "part['text']")
LISTS_WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + LISTS
)
FIRST_PART = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content[0]['text'] }}<|im_end|>\n{% endfor %}" + END
)
EITHER = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}"
    "{{ message.content }}{% else %}{{ message.content[0].text }}{% endif %}<|im_end|>\n{% endfor %}" + END
)
BROKEN = {
    "syntax": "{% for message in messages %}{{ message.content }",
    "unknown function": "{{ format_chat(messages) }}",
    "unknown filter": "{{ messages | as_chat }}",
    "arithmetic": "{{ 1 / 0 }}{% for message in messages %}{{ message.content }}{% endfor %}",
    "wrong types": "{{ messages + 1 }}",
    "refuses all": "{{ raise_exception('not for chats') }}",
    "leaves everything out": "<|im_start|>assistant\n",
    "says everything twice": CHAT_TEMPLATE * 2,
    "takes the last character": "{{ messages[-1].content[:-1] }}",
    "lists printed": "{% for m in messages %}{{ m.content + [] }}{% endfor %}",
}

WAYS = [
    (CHAT_TEMPLATE, []),
    (EITHER, []),
    (REFUSES, [NO_SYSTEM]),
    (ALTERNATES, [NO_SYSTEM]),
    (DROPS, [NO_SYSTEM]),
    (LISTS, [AS_LISTS]),
    (LISTS_BY_KEY, [AS_LISTS]),
    (FIRST_PART, [AS_LISTS]),
    (LISTS_WITHOUT_SYSTEM, [NO_SYSTEM, AS_LISTS]),
]


@pytest.fixture(params=["transformers", "plan"])
def chat_of(request: pytest.FixtureRequest, tmp_path: Path):
    """A chat template as `ask` fills it in, and as `plan` does without transformers."""

    def make(template: str | None):
        if request.param == "transformers":
            chat = byte_tokenizer()
            chat.chat_template = template
            return chat
        if template is not None:
            (tmp_path / "chat_template.jinja").write_text(template)
        return ChatTemplateFile(tmp_path)

    return make


@pytest.mark.parametrize(("template", "told"), WAYS, ids=range(len(WAYS)))
def test_everything_gets_into_the_prompt_and_it_is_said_how(chat_of, template: str, told: list[str]) -> None:
    notes: list[str] = []
    chat = chat_of(template)
    around = frame(ASK, chat, system="Answer in verse.", note=notes.append)
    if NO_SYSTEM in told:
        assert around.head == "<|im_start|>user\nAnswer in verse.\n\n"
    else:
        assert around.head == "<|im_start|>system\nAnswer in verse.<|im_end|>\n<|im_start|>user\n"
    assert around.middle == "\n\n"
    assert around.tail == "<|im_end|>\n<|im_start|>assistant\n"
    assert notes == told
    notes.clear()
    assert frame(ASK, chat, note=notes.append).head == "<|im_start|>user\n"
    assert notes == [note for note in told if note != NO_SYSTEM]  # irrelevant without a system prompt


@pytest.mark.parametrize("template", [None, ""])
def test_a_model_without_a_template_is_told_of(chat_of, template: str | None) -> None:
    notes: list[str] = []
    around = frame(ASK, chat_of(template), system="Be brief.", note=notes.append)
    assert (around.head, around.middle, around.tail) == ("Be brief.\n\n", "\n\n", "")
    assert notes == [NO_TEMPLATE]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_template_is_one_clear_error(chat_of, kind: str) -> None:
    for system in (None, "Be brief."):
        with pytest.raises(ModelUnavailableError) as caught:
            frame(ASK, chat_of(BROKEN[kind]), system=system)
        first, second = caught.value.message.splitlines()
        assert first.startswith("the model's chat template cannot be used: ")
        assert len(first) > len("the model's chat template cannot be used: ")
        assert second == "fetch the model again, or use another one"


def test_what_is_wrong_with_the_users_own_template_is_not_blamed_on_the_model(chat_of) -> None:
    with pytest.raises(UsageError, match=r"needs \$documents once"):
        frame(Template("$question $documents"), chat_of(LISTS))


@pytest.mark.parametrize(("template", "told"), WAYS, ids=range(len(WAYS)))
def test_a_conversation_takes_the_same_way(tokenizer, template: str, told: list[str]) -> None:  # noqa: F811
    usual = dialogue(tokenizer, CHAT_TEMPLATE, system=None if NO_SYSTEM in told else "Be brief.")
    notes: list[str] = []
    talk = dialogue(tokenizer, template, system="Be brief.", note=notes.append)
    shelf = documents(tokenizer, File("a.txt", "Anna."))
    turns = [Turn(shelf, "Who?", replied(talk, tokenizer, "Anna.")), Turn((), "And why?")]
    expected = shown(tokenizer, usual.prompt(turns).ids)
    if NO_SYSTEM in told:
        expected = expected.replace("<|im_start|>user\n", "<|im_start|>user\nBe brief.\n\n", 1)
    assert shown(tokenizer, talk.prompt(turns).ids) == expected
    assert notes == told


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "in a sequence"])
def test_without_a_template_texts_begin_with_the_models_first_token(tmp_path: Path, wrapped: bool) -> None:
    from tokenizers import processors

    end, start = CONTROL_TOKENS[:2]
    chat = byte_tokenizer()
    ids = [(token, chat.convert_tokens_to_ids(token)) for token in (end, start)]
    ends = processors.TemplateProcessing(f"{start} $A {end}", f"{start} $A $B", ids)
    chat.backend_tokenizer.post_processor = processors.Sequence([ends]) if wrapped else ends
    chat.chat_template = None
    chat.save_pretrained(tmp_path)
    for asked in (chat, ChatTemplateFile(tmp_path)):
        assert frame(ASK, asked, system="Be brief.").head == f"{start}Be brief.\n\n"
        assert text_start(asked) == start
    chat.chat_template = CHAT_TEMPLATE
    assert frame(ASK, chat).head == "<|im_start|>user\n"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path):
    """Makes a model with another chat template."""

    def make(template: str | None) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return folder

    return make


@pytest.mark.parametrize("command", ["ask", "plan", "summarize"])
def test_commands_say_it_once_and_go_on(adamas: Runner, model, book: Path, command: str) -> None:  # noqa: F811
    question = [] if command == "summarize" else ["Who came?"]
    rest = ["--no-calibrate"] if command == "plan" else ["-n", "4"]
    done = adamas(command, book, *question, "-s", "Be brief.", "-m", model(LISTS_WITHOUT_SYSTEM), *rest)
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().count(NO_SYSTEM) == done.stderr.decode().count(AS_LISTS) == 1
    done = adamas(command, book, *question, "-m", model(None), *rest)
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().count(NO_TEMPLATE) == 1


@pytest.mark.parametrize("command", ["ask", "plan", "summarize", "chat"])
def test_a_broken_template_ends_with_5(adamas: Runner, model, book: Path, command: str) -> None:  # noqa: F811
    question = ["Who came?"] if command in ("ask", "plan") else []
    done = adamas(command, book, *question, "-m", model(BROKEN["unknown function"]))
    assert (done.returncode, done.stdout) == (5, b"")
    lines = [line for line in done.stderr.decode().splitlines() if "compil" not in line]
    assert lines == [
        "adamas: the model's chat template cannot be used: 'format_chat' is undefined",
        "fetch the model again, or use another one",
    ]
    if command == "ask":
        told = json.loads(adamas(command, book, *question, "-m", model("{%"), "--json").stdout)["error"]
        assert told["type"] == "model_unavailable"


@pytest.mark.parametrize(
    "setting",
    [
        "5",
        "true",
        '{"tools": "b"}',
        '[{"name": "tools", "template": "x"}]',
        '[{"name": "default"}]',
        "[1]",
        None,
    ],
)
@pytest.mark.parametrize("command", ["ask", "plan"])
def test_settings_that_hold_no_template_are_one_clear_error(
    adamas: Runner,  # noqa: F811
    model,
    book: Path,  # noqa: F811
    command: str,
    setting: str | None,
) -> None:
    folder = model(None)
    settings = folder / "tokenizer_config.json"
    if setting is None:
        (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    else:
        settings.write_text(
            json.dumps(json.loads(settings.read_text()) | {"chat_template": json.loads(setting)})
        )
    done = adamas(command, book, "Who came?", "-m", folder)
    assert (done.returncode, done.stdout) == (5, b"")
    told = done.stderr.decode()
    assert "fetch the model again, or use another one" in told
    assert "bug in adamas" not in told
    assert len(told.splitlines()) == 2
