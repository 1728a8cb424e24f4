"""Many clients at once, some of which leave early, against a server of this process.

    python docs/measure_serve.py DOCUMENT [-m MODEL] [--clients 32] [--seconds 300] [--leave 0.2]

Each client asks questions over a real socket, streamed, and may leave in the middle of an answer. Every
whole answer must be the one that the same question gets alone, through the Python interface. Prints the time
to the first token while the server is idle, answers, refusals, departures and faults, tokens a second, and
the resident memory after each tenth of the time; exits with 1 where an answer differs, an error is not meant,
or memory grows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter, deque
from contextlib import AbstractContextManager, suppress
from typing import Any

import httpx2
import psutil

import adamas_cli
from adamas_cli.documents import Selection, collect
from adamas_cli.engine.sampling import Sampling
from adamas_cli.progress import Silent
from adamas_cli.serve.opening import Limits
from adamas_cli.serve.running import Server
from adamas_cli.session.runtime import Runtime
from adamas_cli.settings import DecodingSettings, ModelSettings, PromptSettings
from adamas_cli.store.settings import StoreSettings

QUESTIONS = [f"What does part {number} of the text say?" for number in range(1, 9)]
GROWTH = 0.05  # the share of the first tenth's memory that the rest of the time may add


class Clients:
    """What all clients saw."""

    def __init__(self, address: str, expected: dict[str, str], leave: float, until: float) -> None:
        self.address, self.expected, self.leave, self.until = address, expected, leave, until
        self.seen: Counter[str] = Counter()
        self.tokens = 0
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def ask_until_the_end(self, number: int) -> None:
        """Runs one client."""
        chance = random.Random(number)
        with httpx2.Client(timeout=600) as client:
            while time.monotonic() < self.until:
                try:
                    self._ask(client, chance)
                except Exception as error:
                    self._saw("errors", f"{type(error).__name__}: {error}")

    def first_token(self) -> float:
        """Seconds to the first token of an answer, the median of all questions."""
        each = []
        with httpx2.Client(timeout=600) as client:
            for question in QUESTIONS:
                start = time.perf_counter()
                with self._streamed(client, question) as response:
                    told = (time.perf_counter() for line in response.iter_lines() if _told(line))
                    each.append(next(told) - start)
                    deque(told, maxlen=0)  # to the end: the next question finds the server idle
        return statistics.median(each)

    def _streamed(self, client: httpx2.Client, question: str) -> AbstractContextManager[httpx2.Response]:
        body = {"messages": [{"role": "user", "content": question}], "stream": True}
        return client.stream("POST", f"{self.address}v1/chat/completions", json=body)

    def _ask(self, client: httpx2.Client, chance: random.Random) -> None:
        question, leaves = chance.choice(QUESTIONS), chance.random() < self.leave
        text, events = "", chance.randrange(1, 12)
        with self._streamed(client, question) as response:
            if response.status_code == 429:
                self._saw("refused")
                time.sleep(chance.random())
                return
            for line in response.iter_lines():
                if (event := _event(line)) is None:
                    continue
                if "error" in event:
                    self._saw("errors", str(event["error"]))
                    return
                text += event["choices"][0]["delta"].get("content", "")
                self.tokens += 1
                events -= 1
                if leaves and events <= 0:
                    self._saw("left")
                    return
        same = text.rstrip() == self.expected[question]
        self._saw("answered", "" if same else f"{question}: {text!r} is not {self.expected[question]!r}")

    def _saw(self, what: str, wrong: str = "") -> None:
        with self._lock:
            self.seen[what] += 1
            if wrong:
                self.wrong.append(wrong)


def _event(line: str) -> dict[str, Any] | None:
    """A line of the stream, parsed; None if it has no event."""
    return json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else None


def _told(line: str) -> str:
    """The text of a line's event."""
    event = _event(line)
    return "" if event is None else event["choices"][0]["delta"].get("content", "")


def main() -> int:
    """Serve, ask and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("document")
    parser.add_argument("-m", "--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--leave", type=float, default=0.2, help="share of the answers that are left early")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--parallel", type=int, default=4)
    chosen = parser.parse_args()

    settings = {"max_tokens": chosen.max_tokens}
    alone = adamas_cli.load(chosen.model, **settings)
    with alone.open(chosen.document) as book:
        expected = {question: book.ask(question).text for question in QUESTIONS}
    with open(os.devnull, "rb") as nothing:
        found = collect([chosen.document], Selection(), stdin=nothing, progress=Silent()).documents
    runtime = Runtime.resolve(
        ModelSettings(chosen.model), DecodingSettings(), PromptSettings(**settings), StoreSettings(), Silent()
    )
    limits = Limits(parallel=chosen.parallel, waiting=chosen.clients // 2)
    memory: list[int] = []
    told: list[Clients] = []

    def attend(address: str) -> None:
        clients = Clients(address, expected, chosen.leave, time.monotonic())
        told.append(clients)
        clients.first_token()  # compiles kernels
        print(f"first token, idle: {clients.first_token():.3f} s", flush=True)
        clients.until = time.monotonic() + chosen.seconds
        threads = [
            threading.Thread(target=clients.ask_until_the_end, args=(number,))
            for number in range(chosen.clients)
        ]
        for thread in threads:
            thread.start()
        for _ in range(10):
            time.sleep(chosen.seconds / 10)
            memory.append(psutil.Process().memory_info().rss)
        for thread in threads:
            thread.join()
        os.kill(os.getpid(), signal.SIGINT)

    with Server(runtime, found, Sampling(), limits, None) as server:
        server.open(lambda event: None)
        server.run("127.0.0.1", 0, lambda address: threading.Thread(target=attend, args=(address,)).start())
    (clients,) = told
    growth = memory[-1] / memory[0] - 1
    with suppress(IndexError):
        print("the first fault:", clients.wrong[0])
    print(f"{dict(clients.seen)}, {len(clients.wrong)} faults")
    print(f"{clients.tokens / chosen.seconds:.1f} tokens/s in all")
    print("resident GB:", *(f"{size / 1e9:.2f}" for size in memory), f"({growth:+.1%})")
    return 1 if clients.wrong or growth > GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
