"""What a model's own classes compute, found by probes with a few numbers: so that faster functions may take
their place.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

ROTATED = 4  # what a rotation is given: queries, keys, cos, sin
MLP = ("gate_proj", "up_proj", "down_proj")
EPSILONS = ("variance_epsilon", "eps")  # attribute names in RMSNorms
FAR = 4.0  # size of the largest gate in a probe, so that functions that are alike near zero differ


def norm_offset(module: Any) -> float | None:
    """What an RMSNorm adds to its weight, 0 or 1; None if a module computes something else."""
    weight, eps = getattr(module, "weight", None), epsilon_of(module)
    if not isinstance(weight, Tensor) or weight.dim() != 1 or eps is None or not _takes_one(module):
        return None
    x = torch.linspace(-2, 3, 2 * len(weight), device=weight.device).view(2, -1)
    found = _outcome(module, x)
    for offset in (0.0, 1.0):
        if _are_near(found, F.rms_norm(x, x.shape[-1:], weight.float() + offset, eps)):
            return offset
    return None


def epsilon_of(module: Any) -> float | None:
    """The epsilon of a norm, None without one."""
    return next((getattr(module, name) for name in EPSILONS if hasattr(module, name)), None)


def is_gated(module: Any, model: Any) -> bool:
    """Whether a module is an MLP with gates by SiLU, of the parts in MLP."""
    parts: list[Any] = [getattr(module, name, None) for name in MLP]
    if not all(hasattr(part, "in_features") for part in parts) or not _takes_one(module):
        return False
    gate, up, down = parts
    x = torch.linspace(-1, 1, gate.in_features, device=model.device, dtype=model.dtype).unsqueeze(0)
    x *= FAR / gate(x).abs().max()
    return _are_near(_outcome(module, x), down(F.silu(gate(x)) * up(x)))


def rotates_halves(rope: Callable[..., Any]) -> bool:
    """Whether a function rotates the halves of queries and keys [B, heads, N, D] by cos and sin [B, N, D]."""
    queries, keys = torch.linspace(-2, 3, 48, device="cpu").view(2, 1, 2, 3, 4)
    cos, sin = torch.linspace(-1, 1, 24, device="cpu").view(2, 1, 3, 4)

    def rotated(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    found = _outcome(rope, queries, keys, cos, sin)
    return (
        isinstance(found, tuple)
        and len(found) == 2
        and _are_near(found[0], rotated(queries))
        and _are_near(found[1], rotated(keys))
    )


def rotate_by(rotate: Callable[..., Any], place: Any, mark: str) -> None:
    """Let the models of a module that rotate halves of heads do so by a function of queries, keys, cos and
    sin, which returns None where it does not serve. There, and if only part of a head is rotated, they keep
    their own. mark: an attribute that tells that another model of this kind came first.
    """
    own = getattr(place, "apply_rotary_pos_emb", None)
    if own is None or hasattr(own, mark) or not rotates_halves(own):
        return

    @wraps(own)  # with its marks
    def rotated(*given: Any, **options: Any) -> Any:
        found = None
        if len(given) == ROTATED and not options:
            queries, keys, cos, _ = given
            if cos.shape[-1] == queries.shape[-1] == keys.shape[-1]:
                found = rotate(*given)
        return own(*given, **options) if found is None else found

    setattr(rotated, mark, True)
    place.apply_rotary_pos_emb = rotated


def _takes_one(module: nn.Module) -> bool:
    """Whether a module's forward takes one argument."""
    return len(inspect.signature(module.forward).parameters) == 1


def _outcome(function: Callable[..., Any], *arguments: Tensor) -> Any:
    """A function's result; None if it cannot take these arguments."""
    try:
        return function(*arguments)
    except Exception as error:  # whatever a model's own code raises
        log.debug("%s: %s", type(function).__name__, error)
        return None


def _are_near(found: Any, expected: Tensor) -> bool:
    """Equal up to rounding."""
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    limit = max(1e-4, 4 * torch.finfo(expected.dtype).eps) * expected.abs().max().item()
    return (found - expected).abs().max().item() <= limit
