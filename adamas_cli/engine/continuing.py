"""Lets state-space models continue from the previous tokens' state; their scan starts each pass from empty.

A scan is linear in its state: an earlier state decays and is read alongside what a pass adds itself. So its
contribution is added to the output of transformers' scan.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SCAN = "mamba_selective_scan"  # transformers' function, which starts from zero
_AT_ONCE = 32  # tokens whose decays are in memory at the same time
# The initial states of the running mixer's scans, in order.
_STATES: ContextVar[Iterator[Tensor] | None] = ContextVar("adamas_states", default=None)


def carry_on(model: Any) -> bool:
    """From now on, start the scans of a model's mixers from the states in its cache. False, with nothing
    changed, if the scans are unknown.
    """
    place = sys.modules[type(model).__module__]
    own = getattr(place, SCAN, None)
    if own is None:
        return False
    if not hasattr(own, "carries_on"):  # else another model of this kind came first
        setattr(place, SCAN, _continued(own))
    for module in model.modules():
        if hasattr(module, "A_log"):
            module.__dict__["forward"] = _starting(module, module.forward)
    return True


def _starting(mixer: Any, own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The forward of a mixer that hands its scans their states. A mixer has one scan, or one per head."""

    def forward(hidden_states: Tensor, cache_params: Any = None, **named: Any) -> Tensor:
        state = None if cache_params is None else cache_params.get_recurrent_state(mixer.layer_idx)
        if state is None:
            return own(hidden_states, cache_params=cache_params, **named)
        token = _STATES.set(iter([state] if state.dim() == 3 else state.unbind(1)))
        try:
            return own(hidden_states, cache_params=cache_params, **named)
        finally:
            _STATES.reset(token)

    return forward


def _continued(own: Callable[..., Any]) -> Callable[..., Any]:
    """A scan that starts from its mixer's next state, if there is one."""

    def scan(
        inputs: Tensor, dt: Tensor, rates: Tensor, writers: Tensor, readers: Tensor, **options: Any
    ) -> Any:
        out, last = own(inputs, dt, rates, writers, readers, **{**options, "return_last_state": True})
        state = next(_STATES.get() or iter(()), None)
        if state is not None:
            bias, gate = options.get("delta_bias"), options.get("z")
            steps = dt.float() if bias is None else dt.float() + bias.float()[:, None]
            steps = F.softplus(steps) if options.get("delta_softplus") else steps
            read, left = carried(state, steps, rates, readers)
            out = out + (read if gate is None else read * F.silu(gate)).to(out.dtype)
            last = last + left.to(last.dtype)
        return (out, last) if options.get("return_last_state") else out

    scan.carries_on = True  # type: ignore[attr-defined]
    return scan


def carried(state: Tensor, steps: Tensor, rates: Tensor, readers: Tensor) -> tuple[Tensor, Tensor]:
    """What an earlier state [B, D, S] adds to the output of each token, [B, D, N], and to the last state.

    steps [B, D, N]: time steps; rates [D, S]: decay of a state, below 0; readers [B, S, N].
    """
    state, passed = state.float(), steps.cumsum(-1)
    parts = []
    for times, reader in zip(passed.split(_AT_ONCE, -1), readers.float().split(_AT_ONCE, -1), strict=True):
        left = torch.exp(times[..., None] * rates[:, None]) * state[:, :, None]
        parts.append(torch.einsum("bdns,bsn->bdn", left, reader))
    return torch.cat(parts, -1), torch.exp(passed[..., -1:] * rates) * state
