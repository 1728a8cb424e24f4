"""Many clients at once, some of which leave early, against a server of this process.

    python docs/measure_serve.py DOCUMENT [-m MODEL] [--clients 32] [--seconds 300] [--leave 0.2]

Each client asks questions over a real socket, streamed, and may leave in the middle of an answer. Clients run
in processes of their own, as real ones do: in the server's they would take its interpreter's time. Every
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
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

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
PROCESSES = 4  # that clients run in
WARM = 4.0  # seconds that all clients ask before anything is measured
GROWTH = 0.05  # the share of the first tenth's memory that the rest of the time may add


class Seen(NamedTuple):
    """What clients of one process saw. tokens_per_second: of whole answers, up to the last one's end."""

    counts: Counter[str]
    tokens_per_second: float
    wrong: list[str]


class Clients:
    """Clients of a server. expected: the answer to each question. leave: the share of answers left early."""

    def __init__(self, address: str, expected: dict[str, str] | None = None, leave: float = 0.0) -> None:
        self.address, self.expected, self.leave = address, expected or {}, leave
        self.counts: Counter[str] = Counter()
        self.tokens = 0
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def ask_until(self, end: float, number: int) -> None:
        """Runs one client."""
        chance = random.Random(number)
        with httpx2.Client(timeout=600) as client:
            while time.monotonic() < end:
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
        body |= {"stream_options": {"include_usage": True}}
        return client.stream("POST", f"{self.address}v1/chat/completions", json=body)

    def _ask(self, client: httpx2.Client, chance: random.Random) -> None:
        question, leaves = chance.choice(QUESTIONS), chance.random() < self.leave
        text, tokens, events = "", 0, chance.randrange(1, 12)
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
                if "usage" in event:
                    tokens = event["usage"]["completion_tokens"]
                    continue
                text += event["choices"][0]["delta"].get("content", "")
                events -= 1
                if leaves and events <= 0:
                    self._saw("left")
                    return
        same = text.rstrip() == self.expected[question]
        wrong = "" if same else f"{question}: {text!r} is not {self.expected[question]!r}"
        self._saw("answered", wrong, tokens)

    def _saw(self, what: str, wrong: str = "", tokens: int = 0) -> None:
        with self._lock:
            self.counts[what] += 1
            self.tokens += tokens
            if wrong:
                self.wrong.append(wrong)


def seen_by(address: str, expected: dict[str, str], leave: float, seconds: float, numbers: range) -> Seen:
    """What these clients see in that time, in threads of this process."""
    clients, begun = Clients(address, expected, leave), time.monotonic()
    with ThreadPoolExecutor(len(numbers)) as pool:
        deque(pool.map(partial(clients.ask_until, begun + seconds), numbers), maxlen=0)
    return Seen(clients.counts, clients.tokens / (time.monotonic() - begun), clients.wrong)


def _event(line: str) -> dict[str, Any] | None:
    """A line of the stream, parsed; None if it has no event."""
    return json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else None


def _told(line: str) -> str:
    """The text of a line's event."""
    event = _event(line)
    choices = [] if event is None else event["choices"]
    return choices[0]["delta"].get("content", "") if choices else ""


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
    told: list[Seen] = []

    def attend(address: str) -> None:
        Clients(address).first_token()  # compiles kernels
        print(f"first token, idle: {Clients(address).first_token():.3f} s", flush=True)
        groups = [range(first, chosen.clients, PROCESSES) for first in range(min(PROCESSES, chosen.clients))]
        share = partial(seen_by, address, expected, chosen.leave)
        deque(processes.map(partial(share, WARM), groups), maxlen=0)  # captures steps of several answers
        print("warm", flush=True)
        seen = [processes.submit(share, chosen.seconds, numbers) for numbers in groups]
        for _ in range(10):
            time.sleep(chosen.seconds / 10)
            memory.append(psutil.Process().memory_info().rss)
        told.extend(future.result() for future in seen)
        os.kill(os.getpid(), signal.SIGINT)

    with (
        ProcessPoolExecutor(PROCESSES, get_context("spawn")) as processes,
        Server(runtime, found, Sampling(), limits, None) as server,
    ):
        deque(processes.map(abs, range(PROCESSES)), maxlen=0)  # their imports take none of the time measured
        server.open(lambda event: None)
        server.run("127.0.0.1", 0, lambda address: threading.Thread(target=attend, args=(address,)).start())
    growth = memory[-1] / memory[0] - 1
    wrong = [fault for seen in told for fault in seen.wrong]
    if wrong:
        print("the first fault:", wrong[0])
    print(f"{dict(sum((seen.counts for seen in told), Counter()))}, {len(wrong)} faults")
    print(f"{sum(seen.tokens_per_second for seen in told):.1f} tokens/s in all")
    print("resident GB:", *(f"{size / 1e9:.2f}" for size in memory), f"({growth:+.1%})")
    return 1 if wrong or growth > GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
