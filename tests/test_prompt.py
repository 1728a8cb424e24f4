"""Templates, wrappers and the frame of the model's chat template."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from conftest import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from adamas_cli.errors import UsageError
from adamas_cli.prompt.template import escaped, frame, load_template, opening, template_names


@dataclass
class Text:
    path: str
    text: str = ""

    def pieces(self):
        yield self.text


def test_the_template_of_ask_comes_with_adamas():
    assert "ask" in template_names()
    framed = frame(load_template("ask"), byte_tokenizer())
    assert framed.head.startswith("<|im_start|>user\n")
    assert framed.middle == "\n\n"
    assert framed.tail.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_system_prompt_comes_before_the_documents():
    framed = frame(load_template("ask"), byte_tokenizer(), system="Answer in verse.")
    assert framed.head.startswith("<|im_start|>system\nAnswer in verse.<|im_end|>\n<|im_start|>user\n")


def test_a_model_without_chat_template_gets_the_plain_text():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    framed = frame(load_template("ask"), tokenizer, system="Be brief.")
    assert framed.head.startswith("Be brief.\n\n")
    assert "<|im_start|>" not in framed.head + framed.middle + framed.tail


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$documents $question $date", r"unknown variable \$date; it may use \$documents and \$question"),
        ("$documents only", r"\$question is missing"),
        ("$question only", r"\$documents is missing"),
        ("$documents $question costs 5$", "write \\$\\$ for a dollar sign"),
        ("$question $documents", r"needs \$documents once, and after it \$question once"),
        ("$documents $question $question", r"needs \$documents once"),
    ],
)
def test_what_is_wrong_with_a_template_is_named(tmp_path, text, message):
    file = tmp_path / "mine.md"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        frame(load_template(str(file)), byte_tokenizer())


def test_a_template_that_does_not_exist():
    with pytest.raises(UsageError, match="unknown template 'nonsense': give a file, or one of ask"):
        load_template("nonsense")


def test_a_template_that_is_no_text(tmp_path):
    file = tmp_path / "mine.md"
    file.write_bytes(b"$documents \xff $question")
    with pytest.raises(UsageError, match="cannot be read as UTF-8 text"):
        load_template(str(file))


def test_a_path_cannot_leave_its_attribute():
    assert opening(Text('a"b<c>\nd')) == "<document path='a\"b&lt;c&gt;&#10;d'>\n"


@pytest.mark.parametrize("tag", ["</document>", "</DOCUMENT >", "</Document", "</document\n>"])
def test_a_document_cannot_close_its_wrapper_however_it_is_cut(tag):
    text = f"before {tag} after </docu"
    for cut in range(len(text)):
        result = "".join(escaped([text[:cut], text[cut:]]))
        assert not re.search("</document", result, re.IGNORECASE)
        assert result == text.replace("</" + tag[2:], "<\\/" + tag[2:])


@given(st.lists(st.text(alphabet="</documentDOCUMENT>x", max_size=12), max_size=8))
def test_cutting_changes_nothing(pieces):
    assert "".join(escaped(pieces)) == "".join(escaped(["".join(pieces)]))
