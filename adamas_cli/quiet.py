"""What libraries are told before they are imported: to send no telemetry, and to stay off the terminal."""

from __future__ import annotations

import logging
import os
import warnings

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def prepare_libraries(*, verbose: int, offline: bool) -> None:
    """Set the level of our own log by the number of `-v`, and below two of them silence the libraries.

    Hugging Face's libraries read their environment once, when they are imported.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    logging.getLogger("adamas_cli").setLevel(_LEVELS[min(verbose, 2)])
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if verbose < 2:
        os.environ["TRANSFORMERS_VERBOSITY"] = os.environ["HF_HUB_VERBOSITY"] = "error"
        warnings.filterwarnings("ignore")
