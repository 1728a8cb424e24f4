"""The state space of Mamba 2, used in some layers of hybrid models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamas_cli.models.gguf.architectures.architecture import Names, Place
from adamas_cli.models.gguf.architectures.rules import renamed

if TYPE_CHECKING:
    from adamas_cli.models.gguf.stored import Stored


def _decay(place: Place) -> Stored:
    """The logarithm of minus the decay."""
    import torch

    from adamas_cli.models.gguf.stored import stored

    return stored(torch.log(-place.bare("ssm_a").numbers().flatten()))


def _skip(place: Place) -> Stored:
    from adamas_cli.models.gguf.stored import stored

    return stored(place.bare("ssm_d").numbers().flatten())


def mamba2(module: str) -> Names:
    """Names in a layer that calls its state space `module`."""
    return {
        f"{module}.in_proj": "ssm_in",
        f"{module}.out_proj": "ssm_out",
        f"{module}.conv1d": "ssm_conv1d",
        f"{module}.norm": "ssm_norm",
        f"{module}.dt_bias": renamed("ssm_dt", "bias"),
        f"{module}.A_log": _decay,
        f"{module}.D": _skip,
    }
