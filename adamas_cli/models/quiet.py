"""Keeps transformers from drawing its own bars and warnings where this tool shows its own progress."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from adamas_cli.progress import Progress


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and warnings, nor the bars of the libraries that it quantizes with;
    all are as before afterwards.
    """
    from tqdm.std import tqdm
    from transformers.utils import logging

    drawn = tqdm.__init__

    def hidden(self: Any, *arguments: Any, **options: Any) -> None:
        drawn(self, *arguments, **{**options, "disable": True})

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tqdm.__init__ = hidden
    try:
        yield
    finally:
        tqdm.__init__ = drawn
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def unpacking_shown(label: str, tensors: int, progress: Progress) -> Iterator[None]:
    """Shows the tensors that transformers unpacks from a GGUF file as a task of `progress`.

    Its reader draws a bar of its own that cannot be turned off, so that bar is replaced for the scope.
    """
    from transformers import modeling_gguf_pytorch_utils as reader

    drawn = reader.tqdm
    with progress.task(label, tensors, "tensors") as advance:

        def shown(items: Iterable[Any], **_: object) -> Iterator[Any]:
            for item in items:
                yield item
                advance(1)

        reader.tqdm = shown
        try:
            yield
        finally:
            reader.tqdm = drawn
