"""The state of a chat: the conversation, the display, and the user's choices."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TextIO

from adamas_cli.chat import transcript
from adamas_cli.documents import Document
from adamas_cli.engine.sampling import Sampling
from adamas_cli.session.answer import listen, narrate
from adamas_cli.session.conversation import Conversation
from adamas_cli.terminal.display import Display


@dataclass
class Chat:
    """A conversation and its display.

    find: returns the documents in paths that the user names later. records: receives each turn as a line of
    JSON. file: the transcript, rewritten after each turn.
    """

    conversation: Conversation
    display: Display
    sampling: Sampling
    find: Callable[[Sequence[str]], list[Document]]
    records: TextIO | None = None
    file: Path | None = None
    over: bool = False

    def read(self) -> None:
        """Read the documents that have not been read."""
        with closing(self.conversation.read()) as events:
            for event in events:
                self.display.show(event)

    def ask(self, question: str) -> None:
        """Answer a question."""
        conversation = self.conversation
        try:
            listener = conversation.listener()
            with closing(conversation.ask(question, self.sampling, listener.steer)) as events:
                told = chain.from_iterable(narrate(events, listener))
                answer = listen(question, told, self.display.show)
            if answer.lack is not None:
                self.display.note(answer.lack.message)
        finally:
            if self.file is not None:
                transcript.save(self.file, conversation)
        if self.records is not None:
            record = answer.as_json(conversation.runtime.load_seconds) | conversation.as_json()
            self.records.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.records.flush()
