"""State spaces that go on where the tokens before ended, of models that scan each pass from an empty state.

A scan is linear in its state: what an earlier one left decays and is read beside what a pass makes itself, so
it is added to what transformers' scan gives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SCAN = "mamba_selective_scan"  # transformers' function, which begins with nothing
_AT_ONCE = 32  # tokens whose decays are in memory at the same time
# What the scans of the mixer that is under way begin with, in their order.
_STATES: ContextVar[Iterator[Tensor] | None] = ContextVar("adamas_states", default=None)


def carry_on(model: Any) -> bool:
    """Let the scans of a model's mixers begin with the states of its cache from now on; False, and nothing is
    changed, where they are not known.
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
    """The forward of a mixer whose scans, one or one for each head, find their states."""

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
    """A scan that begins with the next of the states of its mixer, where there is one."""

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
    """What an earlier state [B, D, S] adds to what is read of each token, [B, D, N], and to the last state.

    steps [B, D, N]: of time; rates [D, S]: by which a state decays, below 0; readers [B, S, N].
    """
    state, passed = state.float(), steps.cumsum(-1)
    parts = []
    for times, reader in zip(passed.split(_AT_ONCE, -1), readers.float().split(_AT_ONCE, -1), strict=True):
        left = torch.exp(times[..., None] * rates[:, None]) * state[:, :, None]
        parts.append(torch.einsum("bdns,bsn->bdn", left, reader))
    return torch.cat(parts, -1), torch.exp(passed[..., -1:] * rates) * state
