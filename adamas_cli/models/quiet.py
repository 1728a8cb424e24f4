"""Keeps transformers from drawing its own bars and warnings where this tool shows its own progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
