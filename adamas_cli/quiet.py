"""Settings for libraries before they are imported: no telemetry, no output, idle threads that sleep."""

from __future__ import annotations

import logging
import os
import warnings

from adamas_cli.machine.cpu import limit_cpu

# How long an idle OpenMP thread spins before it sleeps. The default spins forever, which makes decoding 20
# times slower next to one other busy process; this costs nothing on an idle machine (docs/performance.md).
SPIN_COUNT = "10000"

# These warn about things that users cannot change: each 8-bit product, each kernel for another GPU, and
# each declaration that torch will not need in future. transformers imports torchao for every model.
_TALKATIVE = ("bitsandbytes", "torchao", "compressed_tensors", "torch.utils._pytree")

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def prepare_libraries(*, verbose: int, offline: bool) -> None:
    """Set the level of our own log, 0 to 2, and below 2 silence the libraries.

    Hugging Face's libraries read their environment once, on import.
    """
    logging.getLogger("adamas_cli").setLevel(_LEVELS[min(verbose, 2)])
    prepare_environment(silent=verbose < 2, offline=offline)
    if verbose < 2:
        warnings.filterwarnings("ignore")


def prepare_environment(*, silent: bool, offline: bool) -> None:
    """The part of it that suits other people's programs: warnings are not filtered. Raises UsageError for an
    unknown CPU level.
    """
    limit_cpu()
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if silent:
        os.environ["TRANSFORMERS_VERBOSITY"] = os.environ["HF_HUB_VERBOSITY"] = "error"
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
