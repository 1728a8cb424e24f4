"""Fewer, larger kernels for a model's own modules on a GPU.

In steps, projections of the same input become one product; RMSNorm, RoPE and SwiGLU are liger-kernel's. A
question of a few tokens, but more than a step has, takes as long as Python needs to launch its kernels, and
torch's own launch faster; its projections are joined too. No attention forward is rewritten. Only the
functions it calls are replaced, if a probe with a few numbers shows that a class computes the same as the
kernel. A layer with weights in planes has a forward for one token or a few: norms and gates write what the
products after them read, and products add the residual.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from adamas_kernels.contract import LARGEST_STEP
from adamas_kernels.triton.plane_tiles import MOST_IN_TILES
from adamas_kernels.triton.planes import PlaneWeight, join
from torch import Tensor, nn

from adamas_cli.engine.alike import epsilon_of, is_gated, norm_offset, rotate_by
from adamas_cli.engine.family import FAMILY
from adamas_cli.models.plane_linear import PlaneLinear
from adamas_cli.models.quantization import is_plain
from adamas_cli.models.split import Summed

log = logging.getLogger(__name__)

Forward = Callable[..., Any]
Make = Callable[[Any, "dict[nn.Module, _Joined]"], Forward]  # from a module and the joined layers
# Projections that a layer applies in turn to the same input.
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# The only readers of the output of a layer's norms.
NORMED = {"input_layernorm": ("self_attn", JOINED[0]), "post_attention_layernorm": ("mlp", JOINED[1])}
FEW = 256  # tokens of a chunk that takes longer to launch than to compute


@torch.no_grad()
def fuse(model: Any) -> None:
    """Let a model on a GPU use these kernels from now on. Weights that belong together are moved into one
    matrix.
    """
    from adamas_kernels.dispatch import load

    multiply = load("triton").linear
    forwards: dict[nn.Module, Forward] = {}
    joined: dict[nn.Module, _Joined] = {}
    for module in model.modules():
        if is_plain(module):
            forwards[module] = _product(module, multiply)
    for module in model.modules():
        for names in JOINED:
            for parts in _side_by_side([getattr(module, name, None) for name in names]):
                whole = joined[parts[0]] = _Joined(parts, multiply)
                for index, part in enumerate(parts):
                    forwards[part] = whole.forward(index)
    forwards |= _by_liger(model, joined)
    if model.config.get_text_config().model_type in FAMILY:
        forwards |= _by_planes(model, forwards)
    _rotate_by_liger(sys.modules[type(model.get_decoder()).__module__])
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward


def _by_liger(model: Any, joined: dict[nn.Module, _Joined]) -> dict[nn.Module, Forward]:
    """Forwards of norms and gated MLPs; joined: layers computed together, keyed by the first."""
    kinds: dict[type, Make | None] = {}
    forwards: dict[nn.Module, Forward] = {}
    for module in model.modules():
        kind = type(module)
        if kind not in kinds:
            kinds[kind] = _norm_kind(module) or _mlp_kind(module, model)
        make = kinds[kind]
        if make is not None:
            forwards[module] = make(module, joined)
    return forwards


def _norm_kind(module: Any) -> Make | None:
    """A maker of RMSNorm forwards for a module's class, with its weight or with 1 + weight; None if the class
    computes something else.
    """
    offset = norm_offset(module)
    return None if offset is None else partial(_norm, offset)


def _norm(offset: float, module: Any, joined: object) -> Forward:
    from liger_kernel.ops import LigerRMSNormFunction

    eps, casting = epsilon_of(module), "gemma" if offset else "llama"

    def forward(x: Tensor) -> Tensor:
        if offset == 0 and _is_launch_bound(x):
            return F.rms_norm(x, x.shape[-1:], module.weight, eps)
        return LigerRMSNormFunction.apply(x, module.weight, eps, offset, casting, False)

    return forward


def _mlp_kind(module: Any, model: Any) -> Make | None:
    """A maker of forwards for SiLU-gated MLPs of a module's class; None if the class does something else."""
    return _gated if is_gated(module, model) else None


def _gated(module: Any, joined: dict[nn.Module, _Joined]) -> Forward:
    from liger_kernel.ops import LigerSiLUMulFunction

    whole = joined.get(module.gate_proj)
    planes = whole.planes if whole is not None else None
    down = module.down_proj.product if isinstance(module.down_proj, Summed) else module.down_proj

    def forward(x: Tensor) -> Tensor:
        if planes is not None and (_is_one(x) or _is_arranged_for(x, down)):
            return module.down_proj(module.gate_proj.backend.gated(x, planes))
        gate, up = module.gate_proj(x), module.up_proj(x)
        # liger-kernel would copy the halves of a joined product first: three kernels where torch has two.
        by_torch = _is_launch_bound(x) or not gate.is_contiguous()
        inner = F.silu(gate) * up if by_torch else LigerSiLUMulFunction.apply(gate, up)
        return module.down_proj(inner)

    return forward


def _by_planes(model: Any, forwards: dict[nn.Module, Forward]) -> dict[nn.Module, Forward]:
    """Forwards of norms and whole layers for steps of one token, or a few, with weights in planes: a norm
    rounds or arranges for the products after it, and a product adds the residual. forwards: for all other
    cases.
    """
    found: dict[nn.Module, Forward] = {}
    for layer in model.modules():
        if not all(hasattr(layer, name) for name in ("self_attn", "mlp", *NORMED)):
            continue
        last = layer.self_attn.o_proj, layer.mlp.down_proj
        if all(_adds(part) for part in last):
            adding = [_Adding(part) for part in last]
            found |= {part: one.forward for part, one in zip(last, adding, strict=True)}
            found[layer] = _adding_layer(layer, *adding)
        for name, (block, parts) in NORMED.items():
            norm, readers = getattr(layer, name), [getattr(getattr(layer, block), part) for part in parts]
            if all(
                isinstance(part, PlaneLinear) and part.takes_integers(norm.weight.dtype) for part in readers
            ):
                found[norm] = _norm_for(norm, readers, forwards.get(norm, norm.forward))
    return found


def _adds(part: Any) -> bool:
    """Whether a projection's product can add the residual."""
    product = part.product if isinstance(part, Summed) else part
    return isinstance(product, PlaneLinear) and product.bias is None


class _Adding:
    """A projection that adds `addend` to its output, once, if set. Where the products of several ranks are
    summed, the first one adds it.
    """

    def __init__(self, module: PlaneLinear | Summed) -> None:
        self._product: PlaneLinear = module.product if isinstance(module, Summed) else module
        self._ranks = module.ranks if isinstance(module, Summed) else None
        self.addend: Tensor | None = None

    def adds_to(self, hidden: Tensor) -> bool:
        """Whether it can add to these hidden states [..., D]."""
        return _is_one(hidden) or _is_arranged_for(hidden, self._product)

    def forward(self, x: Tensor) -> Tensor:
        addend, self.addend = self.addend, None
        product, ranks = self._product, self._ranks
        if ranks is not None and not ranks.first:
            addend = None
        found = product.backend.linear(x, product.planes, None if addend is None else addend.flatten(0, -2))
        return found if ranks is None else ranks.sum(found)


def _adding_layer(layer: Any, attention: _Adding, mlp: _Adding) -> Forward:
    plain = layer.forward

    def forward(hidden_states: Tensor, **options: Any) -> Any:
        attention.addend = mlp.addend = None  # an interruption may have left one
        if not all(adding.adds_to(hidden_states) for adding in (attention, mlp)):
            return plain(hidden_states, **options)
        attention.addend = hidden_states
        hidden_states, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **options)
        mlp.addend = hidden_states
        return layer.mlp(layer.post_attention_layernorm(hidden_states))

    return forward


def _norm_for(norm: Any, readers: Sequence[PlaneLinear], otherwise: Forward) -> Forward:
    backend = readers[0].backend

    def forward(x: Tensor) -> Tensor:
        if _is_one(x) or all(_is_arranged_for(x, reader) for reader in readers):
            return backend.norm(x, norm.weight, norm.variance_epsilon)
        return otherwise(x)

    return forward


def _rotate_by_liger(place: Any) -> None:
    """Let the models of a module that rotate halves of heads use liger-kernel's RoPE on a GPU. Elsewhere, and
    if only part of a head is rotated, they keep their own.
    """
    from liger_kernel.ops import LigerRopeFunction

    def rotate(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> Any:
        if queries.is_cuda and not _is_launch_bound(queries):
            return LigerRopeFunction.apply(queries, keys, cos, sin)
        return None

    rotate_by(rotate, place, "on_gpu")


def _is_one(x: Tensor) -> bool:
    """Whether activations [..., D] are of one token."""
    return x.numel() == x.shape[-1]


def _is_arranged_for(x: Tensor, reader: Any) -> bool:
    """Whether activations [..., D] are of a few tokens that are arranged for this product."""
    few = 1 < x.numel() // x.shape[-1] <= MOST_IN_TILES
    return few and isinstance(reader, PlaneLinear) and reader.takes_arranged(x.dtype)


def _is_few(x: Tensor) -> bool:
    """Whether activations [B, ..., N, D] are of a few tokens, but more than one."""
    return 1 < x.shape[-2] <= FEW


def _is_launch_bound(x: Tensor) -> bool:
    """Whether activations [B, ..., N, D] are of a few tokens, but more than a step has. A step of
    several sequences is a CUDA graph, in which launches cost nothing and the number of kernels counts.
    """
    return LARGEST_STEP < x.shape[-2] <= FEW


def _side_by_side(parts: Sequence[Any]) -> list[list[Any]]:
    """The projections of a layer that can be joined: all of them or, for weights in planes, runs of
    neighbours of one kind.
    """
    if not all(is_plain(part) or isinstance(part, PlaneLinear) for part in parts):
        return []
    runs = [list(run) for _, run in groupby(parts, _form)]
    planes = all(isinstance(part, PlaneLinear) for part in parts)
    return [run for run in runs if len(run) > 1 and (planes or len(run) == len(parts))]


def _form(part: Any) -> tuple[Any, ...]:
    """The properties that joined projections share."""
    weight = part.planes.kind if isinstance(part, PlaneLinear) else part.weight.dtype
    return part.in_features, weight, part.bias is None


def _product(module: nn.Linear, multiply: Callable[..., Tensor]) -> Forward:
    plain = module.forward

    def forward(x: Tensor) -> Tensor:
        if x.numel() != module.in_features:
            return plain(x)
        return multiply(x, module.weight, module.bias)

    return forward


class _Joined:
    """Linear layers of the same input, whose weights are views of one matrix.

    planes: that matrix, if it is in planes and the layers have no bias.
    """

    def __init__(self, parts: Sequence[Any], multiply: Callable[..., Tensor]) -> None:
        self._plain = [part.forward for part in parts]
        self._multiply = multiply
        self._sizes = [part.out_features for part in parts]
        self._inputs = parts[0].in_features
        biases = [part.bias for part in parts]
        self._bias = None if biases[0] is None else self._side_by_side(biases)
        self.planes: PlaneWeight | None = None
        if isinstance(parts[0], PlaneLinear):
            self._weight: Any = self._joined_planes(parts)
            self._short = multiply
            self.planes = self._weight if self._bias is None else None
        else:
            self._weight = self._side_by_side([part.weight for part in parts])
            self._short = F.linear
        self._input: Tensor | None = None
        self._outputs: Sequence[Tensor] = ()

    def _joined_planes(self, parts: Sequence[PlaneLinear]) -> PlaneWeight:
        whole, start = join([part.planes for part in parts]), 0
        for part, size in zip(parts, self._sizes, strict=True):
            part.planes = whole.part(start, start + size)
            start += size
        return whole

    def _side_by_side(self, tensors: Sequence[Tensor]) -> Tensor:
        first = tensors[0].data
        if len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1:
            # Already joined: the model was moved and is fused again.
            return first.as_strided((sum(self._sizes), *first.shape[1:]), first.stride())
        whole = torch.cat([tensor.data for tensor in tensors])
        for tensor, view in zip(tensors, whole.split(self._sizes), strict=True):
            tensor.data = view
        return whole

    def forward(self, index: int) -> Forward:
        """The forward of one layer: the first layer that sees an input computes for all of them."""

        def forward(x: Tensor) -> Tensor:
            one = x.numel() == self._inputs
            if not one and not _is_few(x):
                return self._plain[index](x)
            if x is not self._input:
                multiply = self._multiply if one else self._short
                self._outputs = multiply(x, self._weight, self._bias).split(self._sizes, -1)
                self._input = x
            output = self._outputs[index]
            if index == len(self._sizes) - 1:
                self._input, self._outputs = None, ()
            return output

        return forward
