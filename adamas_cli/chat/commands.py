"""The commands of a chat: lines that begin with a slash."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from adamas_cli.chat import transcript
from adamas_cli.chat.chat import Chat
from adamas_cli.errors import UsageError
from adamas_cli.session.chat_documents import tokens
from adamas_cli.settings import DEFAULT_SOURCES


@dataclass(frozen=True)
class Command:
    """One command; `run` gets the text after its name."""

    name: str
    argument: str  # as shown by /help
    help: str
    run: Callable[[Chat, str], None]


def obey(chat: Chat, line: str) -> None:
    """Run a line that begins with a slash. Raises UsageError for an unknown command."""
    name, _, argument = line[1:].partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        near = get_close_matches(name, COMMANDS, 1)
        advice = f"did you mean /{near[0]}?" if near else "/help lists the commands"
        raise UsageError(f"unknown command /{name}; {advice}\nto send it as text: /{line}")
    command.run(chat, argument.strip())


def _help(chat: Chat, argument: str) -> None:
    shown = [(f"/{command.name} {command.argument}".strip(), command.help) for command in COMMANDS.values()]
    width = max(len(left) for left, _ in shown)
    for left, right in shown:
        chat.display.note(f"{left:{width}}  {right}")
    chat.display.note("Ctrl-C stops an answer, Ctrl-D leaves. Type // to send text that begins with a slash.")


def _add(chat: Chat, argument: str) -> None:
    paths = _paths(argument, "/add chapter2.txt")
    if "-" in paths:
        raise UsageError("/add takes files and folders; stdin holds the questions")
    documents = chat.find(paths)
    chat.conversation.add(documents)
    named = documents[0].path if len(documents) == 1 else f"{len(documents):,} documents"
    chat.display.note(f"added {named}: {chat.conversation.unread:,} tokens to read")
    chat.read()


def _drop(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    for path in _paths(argument, "/drop chapter2.txt"):
        dropped = conversation.drop(path)
        named = dropped[0].path if len(dropped) == 1 else f"{len(dropped):,} documents"
        chat.display.note(f"dropped {named}, {tokens(dropped):,} tokens")
    if conversation.unread:
        chat.display.note(f"{conversation.unread:,} later tokens are re-read")
    chat.read()


def _tokens(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    for document in conversation.documents:
        chat.display.note(f"{len(document.ids):>9,}  {document.path}")
    documents = tokens(conversation.documents)
    chat.display.note(
        f"documents {documents:,} · conversation {conversation.total - documents:,} · "
        f"free {max(0, conversation.context - conversation.total):,} of {conversation.context:,} tokens"
    )


def _sources(chat: Chat, argument: str) -> None:
    if argument and not argument.isdecimal():
        raise UsageError("give the number of passages, for example: /sources 5")
    found = chat.conversation.sources(int(argument or DEFAULT_SOURCES))
    if found is None:
        raise UsageError(
            "no attention was collected: ask a question first\n"
            "full attention collects none; adamas chat --attn adamas attends sparsely at any length"
        )
    chat.display.tell_sources(found)


def _save(chat: Chat, argument: str) -> None:
    if argument and os.path.exists(os.path.expanduser(argument)):
        raise UsageError(f"{argument} exists; /save! {argument} overwrites it")
    _overwrite(chat, argument)


def _overwrite(chat: Chat, argument: str) -> None:
    if not argument:
        raise UsageError("name a file, for example: /save talk.md")
    transcript.save(Path(os.path.expanduser(argument)), chat.conversation)
    chat.display.note(f"saved {argument}, {len(chat.conversation.turns):,} turns")


_WISHES = {
    "": (None, "the model thinks by its own default"),
    "on": (True, "the model thinks first"),
    "off": (False, "the model answers without thinking"),
}


def _think(chat: Chat, argument: str) -> None:
    if argument in _WISHES:
        wanted, told = _WISHES[argument]
        chat.conversation.think(wanted)
    elif argument.isdecimal() and int(argument):
        told = f"the model thinks for at most {int(argument):,} tokens"
        chat.conversation.think(True, int(argument))
    else:
        raise UsageError("give on, off, or a number of tokens, for example: /think 500")
    chat.display.note(f"from the next question on {told}")


def _clear(chat: Chat, argument: str) -> None:
    chat.conversation.clear()
    unread = chat.conversation.unread
    stay = f"{tokens(chat.conversation.documents):,} tokens of documents stay"
    again = f", and {unread:,} tokens are re-read" if unread else ""
    chat.display.note(f"the conversation is forgotten; {stay}{again}")
    chat.read()


def _exit(chat: Chat, argument: str) -> None:
    chat.over = True


def _paths(argument: str, example: str) -> list[str]:
    """Paths as in a shell; an argument with a lone quote is one path."""
    try:
        words = shlex.split(argument)
    except ValueError:
        words = [argument]
    if not words:
        raise UsageError(f"name files or folders, as in: {example}")
    return list(map(os.path.expanduser, words))


COMMANDS = {
    command.name: command
    for command in (
        Command("help", "", "these lines", _help),
        Command("add", "PATH...", "add documents", _add),
        Command("drop", "PATH...", "remove documents", _drop),
        Command("tokens", "", "tokens used and free", _tokens),
        Command("sources", "[N]", "passages that the last answer attended to", _sources),
        Command("think", "[on|off|N]", "let the model think first, or not, or for at most N tokens", _think),
        Command("save", "FILE", "write the conversation as Markdown", _save),
        Command("save!", "FILE", "the same, overwriting an existing file", _overwrite),
        Command("clear", "", "forget the conversation, keep the documents", _clear),
        Command("exit", "", "leave", _exit),
    )
}
