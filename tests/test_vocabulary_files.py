"""Vocabularies in files other than tokenizer.json give the same tokens as their own libraries."""

from __future__ import annotations

import base64
import json
import shutil
import struct
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pytest
import tiktoken
from conftest import CHAT_TEMPLATE, Run
from tokenizers import Tokenizer as Reference
from tokenizers import decoders, models, pre_tokenizers
from told import raises_told

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.longdoc.parts import Excerpt
from adamas_cli.models import resolve
from adamas_cli.models.vocabulary.files import tokenizer_folder
from adamas_cli.models.vocabulary.patterns import KIMI, LLAMA3, QWEN2, TEKKEN
from adamas_cli.models.vocabulary.tokens import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from adamas_cli.progress import Silent
from adamas_cli.prompt.chat import ChatTemplateFile
from adamas_cli.prompt.layout import Layout, question_ids
from adamas_cli.prompt.opening import text_start
from adamas_cli.prompt.prefix import prefix_places, without_prefix
from adamas_cli.prompt.template import Frame, frame
from adamas_cli.prompt.tokens import Tokenizer
from adamas_cli.session.chat_documents import shelved
from adamas_cli.session.dialogue import Dialogue, Turn

TEXTS = ("The cat's  then 1234\n\n  ate, naïve 字🎉 THE end<s>", " the", "", "\n", "the the\tthe")
BPE, UNIGRAM = 2, 1


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))


def folder(tmp_path: Path, **files: bytes | dict[str, Any]) -> Path:
    """A folder of files; `__` stands for a dot in their names."""
    made = tmp_path / "vocabulary"
    made.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (made / name.replace("__", ".")).write_bytes(data)
    return made


def made(directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(tokenizer_folder(directory, Silent()))


def spelled(tokenizer: Tokenizer, directory: Path, text: str, **options: bool) -> list[str]:
    """The tokens of a text, spelled as in its vocabulary."""
    reference = Reference.from_file(str(tokenizer_folder(directory, Silent()) / "tokenizer.json"))
    return [reference.id_to_token(id_) for id_ in tokenizer.encode(text, **options).tolist()]


# SentencePiece


def field(number: int, value: int | float | bytes) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value % (1 << 64))


def varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def spm(kind: int = BPE, *, prefix: bool = True, squeeze: bool = False) -> bytes:
    """A model of a few pieces; later ones have lower scores, as in SentencePiece's training."""
    words = ["▁t", "he", "▁the", "ca", "▁ca", "▁cat", "at", *"▁tTheca\n1"]
    pieces: list[tuple[str, float, int]] = [
        ("<unk>", 0.0, UNKNOWN),
        ("<s>", 0.0, CONTROL),
        ("</s>", 0.0, CONTROL),
        *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)),
        ("[IN]", 0.0, USER_DEFINED),
        *((word, -1.0 - n, NORMAL) for n, word in enumerate(dict.fromkeys(words))),
    ]
    written = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + field(3, sort)) for text, score, sort in pieces
    )
    trainer = field(3, kind) + field(35, 1) + field(40, 0) + field(41, 1) + field(42, 2) + field(43, -1)
    normalizer = field(1, b"identity") + field(3, int(prefix)) + field(4, int(squeeze))
    return written + field(2, trainer) + field(3, normalizer)


@pytest.mark.parametrize(
    ("text", "begins", "expected"),
    [
        ("the cat", True, ["▁the", "▁cat"]),
        ("the cat", False, ["t", "he", "▁cat"]),
        ("the\ncat", False, ["t", "he", "\n", "ca", "t"]),
        ("  the", False, ["▁", "▁the"]),
        ("é", False, ["<0xC3>", "<0xA9>"]),
        ("<s>", False, ["<0x3C>", "<0x73>", "<0x3E>"]),  # text never becomes a control token
    ],
)
def test_sentencepiece_merges(tmp_path: Path, text: str, begins: bool, expected: list[str]) -> None:
    directory = folder(tmp_path, tokenizer__model=spm())
    assert spelled(made(directory), directory, text, begins=begins) == expected


def test_sentencepiece_chooses_by_scores(tmp_path: Path) -> None:
    directory = folder(tmp_path, tokenizer__model=spm(UNIGRAM, squeeze=True))
    # `▁the` costs 3 and `▁cat` 6, less than their parts.
    assert spelled(made(directory), directory, " the   cat ", begins=True) == ["▁the", "▁cat"]


def test_sentencepiece_without_a_prefix_has_none(tmp_path: Path) -> None:
    directory = folder(tmp_path, tokenizer__model=spm(prefix=False))
    assert spelled(made(directory), directory, "the cat", begins=True) == ["t", "he", "▁cat"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["</s>", "▁the"]),
        ({"legacy": False}, ["</s>", "t", "he"]),
        ({"add_prefix_space": False}, ["</s>", "t", "he"]),
    ],
)
def test_what_follows_a_control_token(tmp_path: Path, settings: dict[str, Any], expected: list[str]) -> None:
    directory = folder(tmp_path, tokenizer__model=spm(), tokenizer_config__json=settings)
    tokenizer = made(directory)
    reference = Reference.from_file(str(tokenizer_folder(directory, Silent()) / "tokenizer.json"))
    assert [reference.id_to_token(id_) for id_ in tokenizer.encode_template("</s>the")] == expected
    start = ["t", "he"] if "add_prefix_space" in settings else ["▁the"]
    assert spelled(tokenizer, directory, "the", begins=True) == start


@pytest.mark.parametrize(
    ("settings", "first"),
    [({}, "<s>"), ({"add_bos_token": False}, ""), ({"add_bos_token": None}, "<s>")],
)
def test_base_models_begin_as_their_settings_say(
    tmp_path: Path, settings: dict[str, Any], first: str
) -> None:
    directory = folder(tmp_path, tokenizer__model=spm(), tokenizer_config__json=settings)
    assert text_start(ChatTemplateFile(tokenizer_folder(directory, Silent()))) == first


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({}, ""),
        ({"add_bos_token": True}, "<s>"),
        ({"tokenizer_class": "LlamaTokenizerFast"}, "<s>"),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, ""),
    ],
)
def test_settings_beside_a_tokenizer_that_begins_with_nothing(
    tmp_path: Path, settings: dict[str, Any], first: str
) -> None:
    directory = folder(tmp_path, tokenizer__json={}, tokenizer_config__json={"bos_token": "<s>"} | settings)
    Reference(models.BPE()).save(str(directory / "tokenizer.json"))
    assert text_start(ChatTemplateFile(directory)) == first


def test_added_tokens_take_the_ids_that_the_settings_name(tmp_path: Path) -> None:
    last = 270 + 10
    added = {
        str(last): {"content": "<|end|>", "special": True},
        "259": {"content": "<|user|>", "special": True},  # replaces [IN]
    }
    directory = folder(
        tmp_path,
        tokenizer__model=spm(),
        tokenizer_config__json={"added_tokens_decoder": added, "eos_token": {"content": "<|end|>"}},
    )
    tokenizer = made(directory)
    first, *_, end = tokenizer.encode_template("<|user|>the<|end|>").tolist()
    assert (first, end) == (259, last)
    assert not {259, last} & set(tokenizer.encode("<|user|>the<|end|>").tolist())
    assert ChatTemplateFile(tokenizer_folder(directory, Silent())).special_tokens["eos_token"] == "<|end|>"


# ranks of bytes

WORDS = (
    b"th",
    b"he",
    b"the",
    b" t",
    b" the",
    b"at",
    b" c",
    b"12",
    b"\n\n",
    b"na",
    b"\xc3\xaf",
    b" a",
    b" at",
)
RANKS = {token: rank for rank, token in enumerate([*(bytes([byte]) for byte in range(256)), *WORDS])}


def tiktoken_file() -> bytes:
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in RANKS.items()]
    return "\n".join(lines).encode() + b"\n"


def tekken_file(*control: str, **config: Any) -> dict[str, Any]:
    """With 4 ids for control tokens before the others; the last word is left out."""
    size = {"default_num_special_tokens": 4, "default_vocab_size": 4 + len(RANKS) - 1}
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode()} for token, rank in RANKS.items()
    ]
    special = [{"rank": rank, "token_str": text} for rank, text in enumerate(control)]
    settings = {"pattern": TEKKEN, "version": "v7", **size, **config}
    return {"config": settings, "vocab": vocabulary, "special_tokens": special}


def by_tiktoken(pattern: str, ranks: dict[bytes, int], text: str) -> list[int]:
    encoding = tiktoken.Encoding("truth", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return encoding.encode(text, disallowed_special=())


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("tokenizer__model", LLAMA3),
        ("qwen__tiktoken", QWEN2),
        ("tiktoken__model", KIMI),
        ("other__tiktoken", LLAMA3),
    ],
)
def test_tiktoken_files(tmp_path: Path, name: str, pattern: str) -> None:
    tokenizer = made(folder(tmp_path, **{name: tiktoken_file()}))
    for text in TEXTS:
        assert tokenizer.encode(text).tolist() == by_tiktoken(pattern, RANKS, text)


def test_control_tokens_of_tiktoken_files_are_those_of_the_publishers_code(tmp_path: Path) -> None:
    directory = folder(tmp_path, tokenizer__model=tiktoken_file())
    control = made(directory).control_tokens
    assert control["<|begin_of_text|>"] == len(RANKS)
    assert control["<|start_header_id|>"] == len(RANKS) + 6
    assert control["<|eot_id|>"] == len(RANKS) + 9
    assert len(control) == 256


def test_tekken(tmp_path: Path) -> None:
    directory = folder(tmp_path, tekken__json=tekken_file("<unk>", "<s>", "</s>", "[INST]"))
    tokenizer = made(directory)
    ranks = {token: rank for token, rank in RANKS.items() if token != WORDS[-1]}
    for text in TEXTS:
        assert (tokenizer.encode(text) - 4).tolist() == by_tiktoken(TEKKEN, ranks, text)
    assert tokenizer.encode_template("<s>[INST]").tolist() == [1, 3]


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        (("<unk>", "<s>", "</s>", "[SYSTEM_PROMPT]"), "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT]"),
        (("<unk>", "<s>", "</s>"), None),
    ],
)
def test_tekken_has_the_template_of_mistrals_library(
    tmp_path: Path, control: tuple[str, ...], expected: str | None
) -> None:
    directory = folder(tmp_path, tekken__json=tekken_file(*control))
    chat = ChatTemplateFile(tokenizer_folder(directory, Silent()))
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Anna."}]
    assert chat.apply_chat_template([*said]) == "<s>[INST]Who?[/INST]Anna.</s>"
    system = {"role": "system", "content": "Be brief."}
    if expected is None:
        with pytest.raises(Exception, match="no system role"):
            chat.apply_chat_template([system, *said])
    else:
        assert chat.apply_chat_template([system, *said[:1]]) == expected + "[INST]Who?[/INST]"


# two files


def test_vocab_and_merges(tmp_path: Path) -> None:
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "t")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        text: n for n, text in enumerate([*alphabet, *("".join(pair) for pair in merges), "<|end|>"])
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    directory = folder(
        tmp_path,
        vocab__json=vocabulary,
        merges__txt="\n".join(lines).encode(),
        special_tokens_map__json={"eos_token": "<|end|>"},
        added_tokens__json={"<|more|>": len(vocabulary) + 2},
    )
    truth = Reference(models.BPE(vocabulary, merges))
    truth.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    truth.decoder = decoders.ByteLevel()
    tokenizer = made(directory)
    for text in TEXTS:
        assert tokenizer.encode(text).tolist() == truth.encode(text).ids
    assert tokenizer.control_tokens["<|more|>"] == len(vocabulary) + 2


# what is refused


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer__model": b"no such thing at all"}, "it is not a SentencePiece model"),
        ({"tokenizer__model": spm()[:900]}, "it is not a SentencePiece model, or damaged"),
        ({"tokenizer__model": b""}, "has no vocabulary"),
        ({"qwen__tiktoken": b"####"}, "it is not a tiktoken file"),
        ({"qwen__tiktoken": b"YQ== 0\nYg== 2\n"}, "not consecutive"),
        ({"tekken__json": {"config": {}}}, "tekken.json cannot be read"),
        ({"tekken__json": b"{"}, "tekken.json cannot be read"),
        ({"vocab__json": {"\u0120": 0}}, "there is no merges.txt"),
        ({"vocab__json": {"a": 0}, "merges__txt": b"a b"}, "it is not byte-level"),
        ({"vocab__json": b"[]", "merges__txt": b""}, "vocab.json cannot be read"),
        ({"tokenizer__model": spm(), "tokenizer_config__json": b"[]"}, "holds no settings"),
    ],
)
def test_damaged_vocabularies_are_one_sentence(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    with raises_told(ModelUnavailableError, match=words):
        tokenizer_folder(folder(tmp_path, **files), Silent())
    assert not list((tmp_path / "cache").rglob("*.unfinished"))


# as models


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model of 258 tokens, with only a tekken.json of the same size."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    written = tekken_file("<s>", "</s>", default_num_special_tokens=2, default_vocab_size=258)
    (copy / "tekken.json").write_text(json.dumps(written))
    (copy / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("<|im_start|>", "<s>"))
    return copy


def test_commands_use_it(run_here: Run, model: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("Anna came home.\n" * 8)
    code, _, told = run_here("ask", text, "Who came?", "-m", model, "-n", "2")
    assert code == 0, told
    code, shown, told = run_here("plan", text, "Who came?", "-m", model, "--no-calibrate", "--json")
    assert code == 0, told
    assert json.loads(shown)["n_prompt_tokens"] > 8 * len("Anna came home.")
    files = resolve(str(model), device="cpu", offline=True, progress=Silent())
    assert files.texts != files.directory
    assert Tokenizer.of(files).encode("A").tolist() == [2 + ord("A")]


@pytest.mark.parametrize("command", ["ask", "plan"])
def test_tokens_without_a_row_are_told(run_here: Run, model: Path, tmp_path: Path, command: str) -> None:
    written = tekken_file("<s>", "</s>", default_num_special_tokens=100, default_vocab_size=356)
    (model / "tekken.json").write_text(json.dumps(written))
    text = tmp_path / "a.txt"
    text.write_text("caf\u00e9\n")  # its bytes are beyond the model's 258 tokens
    code, out, told = run_here(command, text, "Who came?", "-m", model)
    assert (code, out) == (5, "")
    assert "does not belong to its model" in told
    assert "the model knows 258" in told


# the space before a text


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "places"),
    [
        (None, None, None),
        ({"type": "NFC"}, {"type": "ByteLevel", "add_prefix_space": False}, None),
        ({"type": "Sequence", "normalizers": [{"type": "Prepend"}, {"type": "NFC"}]}, None, "sections"),
        (None, {"type": "Metaspace", "prepend_scheme": "first"}, "start"),
        (
            None,
            {"type": "Sequence", "pretokenizers": [{"type": "Metaspace", "prepend_scheme": "always"}]},
            "sections",
        ),
        (None, {"type": "Metaspace", "prepend_scheme": "never"}, None),
        (None, {"type": "ByteLevel", "add_prefix_space": True}, "sections"),
    ],
)
def test_where_a_space_is_put(normalizer: Any, pre_tokenizer: Any, places: str | None) -> None:
    assert prefix_places(normalizer, pre_tokenizer) == places
    assert prefix_places(without_prefix(normalizer), without_prefix(pre_tokenizer)) is None


def test_ids_are_those_of_pieces_of_any_length(tmp_path: Path) -> None:
    tokenizer = made(folder(tmp_path, tokenizer__model=spm()))
    assert tokenizer.piecewise
    text = "the cat at the\ncat  the cat\n" * 6000  # longer than a block
    whole = tokenizer.encode(text, begins=True)
    reference = Reference.from_file(
        str(tokenizer_folder(tmp_path / "vocabulary", Silent()) / "tokenizer.json")
    )
    assert whole.tolist() == reference.encode(text, add_special_tokens=False).ids
    pieces = [text[at : at + 1000] for at in range(0, len(text), 1000)]
    assert np.array_equal(np.concatenate([*tokenizer.stream(pieces, begins=True)]), whole)


@pytest.mark.parametrize("system", [None, "the cat"])
@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}",
        "<s>{% for m in messages %}[IN]{{ m.content }}</s>{% endfor %}[IN]",
    ],
    ids=["none", "as text", "as tokens"],
)
@pytest.mark.parametrize("scheme", ["Prepend", "first", "always"])
def test_a_prompt_in_pieces_has_no_space_that_the_whole_has_not(
    tmp_path: Path, scheme: str, template: str | None, system: str | None
) -> None:
    directory = folder(tmp_path, tokenizer__model=spm())
    copy = tmp_path / "written"
    shutil.copytree(tokenizer_folder(directory, Silent()), copy)
    saved = json.loads((copy / "tokenizer.json").read_text())
    if scheme != "Prepend":
        saved["normalizer"] = None
        spaces = {"replacement": "\u2581", "prepend_scheme": scheme, "split": False}
        saved["pre_tokenizer"] = {"type": "Metaspace", **spaces}
    (copy / "tokenizer.json").write_text(json.dumps(saved))
    if template is not None:
        (copy / "chat_template.jinja").write_text(template)
    tokenizer, chat = Tokenizer.from_directory(copy), ChatTemplateFile(copy)
    whole = Reference.from_file(str(copy / "tokenizer.json"))
    ask = Template("the ${documents}the\n$question.")
    around = frame(ask, chat, system=system)
    layout = Layout(tokenizer, around)
    texts = {"a": "the cat", "b": "1\n"}
    for path, text in texts.items():
        layout.add(Excerpt.of(path, text))
    ids = [*layout.fit(0, 0, layout.total), *question_ids(tokenizer, around, "Hat?")]
    read = "".join(f'<document path="{path}">\n{text}\n</document>\n' for path, text in texts.items())
    text = f"{around.head}{read}{around.middle}Hat?{around.tail}"
    assert ids == whole.encode(text, add_special_tokens=False).ids
    talk = Dialogue(ask, chat, tokenizer, system=system)
    bare = Layout(tokenizer, Frame("", "", ""), before=talk.head)
    for path, text in texts.items():
        bare.add(Excerpt.of(path, text))
    documents = shelved(bare, bare.fit(0, 0, bare.total))
    assert talk.prompt([Turn(documents, "Hat?")]).ids.tolist() == ids
