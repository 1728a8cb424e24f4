"""Rotates positions by the length a timeline will reach, not by where each chunk ends.

transformers' rotary modules choose frequencies by the largest position they are given. In a pass of a
timeline they get one extra position, at the end of its reach, whose rotation is dropped. A call outside a
pass is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adamas_cli.engine.interface import now
from adamas_cli.models.rotary import BY_LENGTH

# Where transformers' modules store the longest length seen, and its frequencies; a kind of layer may be
# prefixed.
_LENGTH_SEEN, _FREQUENCIES = "max_seq_len_cached", "inv_freq"


def foresee(model: Any) -> None:
    """Let a model's rotary modules rotate this way from now on."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        names = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
        if names & set(BY_LENGTH):
            module.__dict__["forward"] = _foreseeing(module, module.forward)


def _foreseeing(module: Any, own: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    lengths = [name for name in vars(module) if name.endswith(_LENGTH_SEEN)]
    remembered = [*lengths, *(name for name, _ in module.named_buffers() if name.endswith(_FREQUENCIES))]

    def forward(x: Tensor, position_ids: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, ...]:
        under_way = now()
        if under_way is None:
            return own(x, position_ids, *rest, **named)
        reach = under_way.cache.extent.reach
        # Lengths seen by other timelines must not affect this one, nor its reach any other call.
        before = {name: getattr(module, name) for name in remembered}
        for name in lengths:
            setattr(module, name, 0)
        try:
            if not reach:
                return own(x, position_ids, *rest, **named)
            last = torch.full_like(position_ids[..., :1], reach - 1)
            turned = own(x, torch.cat([position_ids, last], -1), *rest, **named)
            return tuple(part[..., :-1, :] for part in turned)
        finally:
            for name, value in before.items():
                setattr(module, name, value)

    return forward
