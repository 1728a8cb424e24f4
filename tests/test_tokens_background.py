"""Work ahead of its consumer: the same items, bounded, and gone when the consumer is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tokenizer_families import build, prose, save

from adamas_cli.prompt.background import run_ahead
from adamas_cli.prompt.tokens import Tokenizer, tokenize_in_background


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "run-ahead"]


def test_same_items_in_order() -> None:
    assert list(run_ahead(range(1000), depth=3)) == list(range(1000))
    assert list(run_ahead([], depth=1)) == []
    assert workers() == []


def test_runs_ahead_but_no_further_than_asked() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for n in range(1000):
            made.append(n)
            yield n

    with closing(run_ahead(items(), depth=4)) as ahead:
        assert next(ahead) == 0
        time.sleep(0.2)
        assert 4 <= len(made) <= 7
    assert workers() == []


def test_what_it_raises_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("disk is gone")

    ahead = run_ahead(items(), depth=8)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="disk is gone"):
        next(ahead)
    assert workers() == []


def test_stops_and_closes_its_source_when_the_consumer_leaves() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    ahead = run_ahead(items(), depth=2)
    next(ahead)
    start = time.monotonic()
    ahead.close()
    assert time.monotonic() - start < 0.5
    assert closed.is_set()
    assert workers() == []


def test_does_not_wait_for_input_that_never_comes() -> None:
    release = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        release.wait()

    ahead = run_ahead(items(), depth=2)
    next(ahead)
    start = time.monotonic()
    ahead.close()
    assert time.monotonic() - start < 1
    release.set()
    for thread in workers():
        thread.join(1)
    assert workers() == []


def test_a_consumer_that_fails_stops_it() -> None:
    def consume() -> None:
        with closing(run_ahead(iter(int, 1), depth=2)) as ahead:
            next(ahead)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert workers() == []


def test_tokenizes_in_the_background(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(save(build("digits"), tmp_path))
    ids = np.concatenate(list(tokenize_in_background(tokenizer, [prose()])))
    assert np.array_equal(ids, tokenizer.encode(prose()))
