"""Silences transformers' progress bars and warnings while this tool shows its own progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """A scope without transformers' progress bars and warnings, and without the bars of its quantization
    libraries.
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
