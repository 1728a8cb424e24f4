"""Converts the vocabulary of model folders without a tokenizer.json into one, once for each vocabulary."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.folder import TOKENIZERS
from adamas_cli.models.places import exclusive, unwritable, vocabularies_directory
from adamas_cli.models.vocabulary import ranks
from adamas_cli.models.vocabulary.building import add_ends, add_tokens
from adamas_cli.models.vocabulary.byte_level import byte_level
from adamas_cli.models.vocabulary.splitting import SPLITTINGS, UNKNOWN
from adamas_cli.models.vocabulary.spm_file import read_spm_file
from adamas_cli.models.vocabulary.tokens import NORMAL, UNUSED, Tokens, pair, with_added
from adamas_cli.progress import Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LAYOUT = 1  # increases when the output changes, so that older folders are rewritten
_SETTINGS = "tokenizer_config.json"
_BESIDE = (
    _SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
# How families with vocab.json and merges.txt split text, by tokenizer class.
_SPLITTING = {"Qwen2Tokenizer": "qwen2", "GPTNeoXTokenizer": "olmo", "LlamaTokenizer": "llama-bpe"}
_ROLES = ("bos", "eos", "unk", "pad")


def tokenizer_folder(directory: Path, progress: Progress) -> Path:
    """The folder with a model folder's tokenizer.json: itself if it has one, else one made from its
    vocabulary.

    Raises ModelUnavailableError for a vocabulary that is damaged or of an unsupported kind.
    """
    found = next((file for name in TOKENIZERS for file in sorted(directory.glob(name))), None)
    if found is None or found.name == TOKENIZERS[0]:
        return directory  # if one is missing, its reader reports it
    folder = vocabularies_directory() / f"{_hash(directory, found)[:16]}-{LAYOUT}"
    if folder.is_dir():
        return folder
    with exclusive(folder, progress):
        if not folder.is_dir():
            _write(directory, found, folder, progress)
    return folder


def _hash(directory: Path, vocabulary: Path) -> str:
    digest = hashlib.sha256(vocabulary.name.encode())
    for file in (vocabulary, vocabulary.with_name("merges.txt"), *(directory / name for name in _BESIDE)):
        if file.is_file():
            digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _write(directory: Path, vocabulary: Path, folder: Path, progress: Progress) -> None:
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with progress.task(f"reading {vocabulary.name}", None, "tokens"):
            tokenizer, settings = _read(vocabulary, _Settings(directory), progress)
        unfinished.mkdir()
        for name in _BESIDE:
            if (directory / name).is_file():
                shutil.copy(directory / name, unfinished / name)
        (unfinished / _SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
        tokenizer.save(str(unfinished / TOKENIZERS[0]))
        os.replace(unfinished, folder)
    except OSError as error:
        raise unwritable(folder.parent, error) from error
    except Exception as error:  # the library raises plain Exception for unreadable files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelUnavailableError(
            f"{vocabulary} cannot be read: {reason}.\nFetch the model again."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class _Settings:
    """What the files next to a vocabulary say about its tokens."""

    def __init__(self, directory: Path) -> None:
        special, self._added, self.all = (
            _object(directory / name) for name in ("special_tokens_map.json", "added_tokens.json", _SETTINGS)
        )
        self.all = special | self.all

    @property
    def kind(self) -> str:
        """The class of the tokenizer."""
        return str(self.all.get("tokenizer_class")).removesuffix("Fast")

    def added(self) -> dict[int, tuple[str, bool]]:
        """Tokens outside the vocabulary by id, and whether they are control tokens."""
        listed = {int(id_): (text, True) for text, id_ in self._added.items()}
        for id_, token in (self.all.get("added_tokens_decoder") or {}).items():
            listed[int(id_)] = (token["content"], bool(token.get("special", True)))
        return listed

    def role(self, name: str) -> str | None:
        """The text of a token with a role."""
        token = self.all.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        return text if isinstance(text, str) else None

    def adds_bos(self, otherwise: bool) -> bool:
        """Whether texts begin with the `bos` token."""
        adds = self.all.get("add_bos_token")
        return otherwise if adds is None else bool(adds)


def _object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} holds no settings")
    return found


def _read(vocabulary: Path, settings: _Settings, progress: Progress) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and the settings to store with it."""
    data = vocabulary.read_bytes()
    added = settings.added()
    template = settings.all.get("chat_template")
    begins = False
    if vocabulary.name == "tekken.json":
        tokens, splitting = ranks.read_tekken(data)
        tokenizer, begins = ranks.by_ranks(tokens, splitting), splitting.bos
        template = template or ranks.tekken_template(tokens)
    elif vocabulary.name == "vocab.json":
        tokens = with_added(_listed(json.loads(data), vocabulary.with_name("merges.txt")), added)
        tokenizer = byte_level(tokens, SPLITTINGS[_SPLITTING.get(settings.kind, "gpt-2")])
    elif vocabulary.name == "tokenizer.model" and not _is_ranks(data):
        spm = read_spm_file(data)
        prefix = spm.space_prefix and settings.all.get("add_prefix_space") is not False
        spm = replace(spm, tokens=with_added(spm.tokens, added), space_prefix=prefix)
        tokens, begins = spm.tokens, "bos" in spm.tokens.roles
        # transformers' name for its earlier behaviour, before it dropped the space after control tokens.
        tokenizer = spm.tokenizer(after_control=settings.all.get("legacy") is not False)
    else:
        rule = ranks.RULES.get(vocabulary.name)
        if rule is None:
            progress.note(f"splitting text as most models do, since the rule of {vocabulary.name} is unknown")
        words = ranks.read_tiktoken(data)
        own = {len(words) + n: (text, True) for n, text in enumerate(rule.added if rule else ())}
        tokens = with_added(ranks.tiktoken_tokens(words), added or own)
        splitting = SPLITTINGS[rule.splitting] if rule else UNKNOWN
        tokenizer, begins = ranks.by_ranks(tokens, splitting), splitting.bos
    add_tokens(tokenizer, tokens)
    named = {role: tokens.vocabulary.get(settings.role(role) or "", -1) for role in _ROLES}
    roles = tokens.roles | {role: id_ for role, id_ in named.items() if id_ >= 0}
    tokens = replace(tokens, roles=roles)
    adds_eos = bool(settings.all.get("add_eos_token"))
    add_ends(tokenizer, tokens, bos=settings.adds_bos(begins), eos=adds_eos)
    beside = settings.all | tokens.named()
    return tokenizer, beside | ({"chat_template": template} if template else {})


def _listed(vocabulary: dict[str, int], merges: Path) -> Tokens:
    """The vocabulary of a vocab.json and its merges file. Raises ValueError if it is not byte-level."""
    if not merges.is_file():
        raise ValueError(f"there is no {merges.name} beside it")
    if "\u0120" not in vocabulary:  # a space in GPT-2's alphabet
        raise ValueError("it is not byte-level")
    size = max(vocabulary.values()) + 1
    texts, kinds = [""] * size, [UNUSED] * size
    for text, id_ in vocabulary.items():
        texts[id_], kinds[id_] = text, NORMAL
    lines = merges.read_text(encoding="utf-8").split("\n")
    pairs = [pair(line.rstrip("\r")) for line in lines if line.strip() and not line.startswith("#version")]
    return Tokens(texts, kinds, [], pairs, {})


def _is_ranks(data: bytes) -> bool:
    """Whether it is a tiktoken file: each line has a token in base64 and a number."""
    first = data.partition(b"\n")[0].split()
    return len(first) == 2 and first[1].isdigit()
