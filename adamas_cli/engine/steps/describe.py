"""Describes a model's modules as data for a compiled decoder: the structure of its layers, and their weights.

Descriptions are checked: norms and activations by what they compute, and every weight of a layer must belong
to something described.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from adamas_kernels.softmax import Softmax
from adamas_kernels.weights import (
    Activation,
    AttentionWeights,
    DecoderWeights,
    LayerWeights,
    Linear,
    Mixture,
    Mlp,
    Norm,
    Router,
    RowOrder,
)
from torch import Tensor, nn

from adamas_cli.cache.cache import layer_types
from adamas_cli.cache.layer import SLIDING
from adamas_cli.engine.steps.families import FAMILIES, Family

if TYPE_CHECKING:
    from adamas_kernels.cpu import CpuBackend

    from adamas_cli.engine.model import Model

T = TypeVar("T")
EMBEDDINGS = ("embed_tokens", "embed_in")
LAST_NORMS = ("norm", "final_layernorm", "final_layer_norm")
ATTENTION = ("self_attn", "attention")
OUTPUTS = ("o_proj", "dense")
# Names of the products that queries, keys and values come from, and whether one product stores each head's
# three together.
INPUTS = ((("q_proj", "k_proj", "v_proj"), False), (("qkv_proj",), False), (("query_key_value",), True))
HEAD_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"), ("query_layernorm", "key_layernorm"))
MLPS = ("mlp", "block_sparse_moe")
# Names of the products of an MLP, the output last, and the row order of the others.
PRODUCTS: tuple[tuple[tuple[str, ...], RowOrder], ...] = (
    (("gate_proj", "up_proj", "down_proj"), "apart"),
    (("gate_up_proj", "down_proj"), "halves"),
    (("up_proj", "down_proj"), "plain"),
    (("fc1", "fc2"), "plain"),
    (("c_fc", "c_proj"), "plain"),
    (("dense_h_to_4h", "dense_4h_to_h"), "plain"),
)
ROUTERS = ("gate", "router")
SHARED = ("shared_expert", "shared_experts", "shared_mlp")
FUNCTIONS = ("act_fn", "activation_fn", "act")
ACTIVATIONS: tuple[tuple[Activation, Callable[[Tensor], Tensor]], ...] = (
    (Activation("swish"), nn.functional.silu),
    (Activation("swish", alpha=1.702), lambda x: x * torch.sigmoid(1.702 * x)),
    (Activation("gelu"), nn.functional.gelu),
    (Activation("gelu_tanh"), lambda x: nn.functional.gelu(x, approximate="tanh")),
    (Activation("relu"), nn.functional.relu),
    (Activation("relu_squared"), lambda x: nn.functional.relu(x).square()),
)
_PROBE = torch.linspace(-5, 5, 41)  # where activations are compared
_CLOSE = 2e-5  # tolerance between two ways to compute the same; the two forms of gelu differ by more
_LAYER_NORM_EPS = 1e-5  # torch's default
SPLIT = "its layers are split over GPUs"  # why steps that compute whole layers do not serve a model


class NoCompiledFormError(Exception):
    """Part of a model is not described; the message says which, in a few words."""


def describe(model: Model) -> DecoderWeights:
    """The model with its packed weights. Raises NoCompiledFormError."""
    config, module = model.config, model.module
    if config.model_type not in FAMILIES:
        raise NoCompiledFormError(f"no compiled steps for models of type {config.model_type}")
    body = body_of(module)
    embedding = _one_of(body, EMBEDDINGS, "embeddings")
    multiplier = getattr(body, "embedding_multiplier", 1.0)
    kinds = rotation_kinds(module, config)
    layers = body.layers[: config.num_hidden_layers]
    family = FAMILIES[config.model_type]

    def embedded(token: int) -> Tensor:
        row: Tensor = embedding(torch.tensor(token))
        return row if multiplier == 1.0 else row * multiplier

    return DecoderWeights(
        embedded,
        config.hidden_size,
        [
            _Layer(layer, family, config, kind, 0 if len(kinds) == 1 else kinds.index(kind)).described()
            for layer, kind in zip(layers, layer_types(config), strict=True)
        ],
        norm_of(_one_of(body, LAST_NORMS, "last norm"), config.hidden_size),
        linear_of(module.get_output_embeddings()),
        factor=getattr(module, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def body_of(module: Any) -> Any:
    """The part of a model that holds its text layers. Raises NoCompiledFormError."""
    found = module.get_decoder()
    if hasattr(found, "layers"):
        return found
    raise NoCompiledFormError(f"no compiled form of {type(module).__name__}")


def rotation_kinds(module: Any, config: Any) -> list[str]:
    """The kinds of layers that have their own rotation; a single one if they share it."""
    rotary = body_of(module).rotary_emb
    by_kind = "layer_type" in inspect.signature(rotary.forward).parameters
    return sorted(set(layer_types(config))) if by_kind else [""]


class _Layer:
    """One layer, and which of its modules are already described."""

    def __init__(self, layer: Any, family: Family, config: Any, kind: str, rotation: int) -> None:
        """kind: of its attention; rotation: which of `rotation_kinds` is its own."""
        self._layer, self._family, self._config = layer, family, config
        self._kind, self._rotation = kind, rotation
        self._described: set[nn.Module] = set()

    def described(self) -> LayerWeights:
        """The whole layer. Raises NoCompiledFormError."""
        layer, family = self._layer, self._family
        parallel = family.parallel
        if isinstance(parallel, str):
            parallel = bool(getattr(layer, parallel))
        weights = LayerWeights(
            before_attention=self._norm(layer, family.before_attention),
            attention=self._attention(_one_of(layer, ATTENTION, "attention")),
            after_attention=self._norm(layer, family.after_attention),
            before_mlp=self._norm(layer, family.before_mlp),
            mlp=self._mlp(_one_of(layer, MLPS, "MLP")),
            after_mlp=self._norm(layer, family.after_mlp),
            parallel=parallel,
            factor=getattr(layer, "residual_multiplier", 1.0),
        )
        for name, module in layer.named_modules():
            if _has_weights(module) and module not in self._described:
                raise NoCompiledFormError(f"its layers have a {name} that has no compiled form")
        return weights

    def _attention(self, module: Any) -> AttentionWeights:
        names, by_head = _present(module, INPUTS, "attention")
        inputs = [self._linear(getattr(module, name)) for name in names]
        output = _one_of(module, OUTPUTS, "attention")
        dim = _one_of(module, ("head_dim", "head_size"), "attention")
        heads = output.in_features // dim
        norms = next((pair for pair in HEAD_NORMS if getattr(module, pair[0], None) is not None), None)
        query_norm, key_norm = (None, None) if norms is None else (self._norm(module, name) for name in norms)
        return AttentionWeights(
            inputs=inputs,
            output=self._linear(output),
            heads=heads,
            kv_heads=(sum(part.weight.rows for part in inputs) // dim - heads) // 2,
            head_dim=dim,
            scaling=module.scaling,
            by_head=by_head,
            query_norm=query_norm,
            key_norm=key_norm,
            norms_last=self._family.norms_last,
            rotation=self._rotation if self._family.rotates(module) else None,
            pairs=self._family.pairs,
            clip=getattr(self._config, "clip_qkv", None),
            softmax=self._softmax(module),
            growth=growth_of(self._config),
        )

    def _softmax(self, module: Any) -> Softmax:
        own = dict(module.named_parameters(recurse=False))
        sinks = _float(own.pop("sinks", None))
        if not own:
            self._described.add(module)
        return Softmax(
            window=self._config.sliding_window if self._kind == SLIDING else None,
            softcap=getattr(module, "attn_logit_softcapping", None) or 0.0,
            sinks=sinks,
        )

    def _mlp(self, module: Any) -> Mlp | Mixture:
        if (experts := getattr(module, "experts", None)) is not None:
            return self._mixture(module, experts)
        return self._plain_mlp(module)

    def _plain_mlp(self, module: Any) -> Mlp:
        names, order = _present(module, PRODUCTS, "MLP")
        *first, down = (self._linear(getattr(module, name)) for name in names)
        return Mlp(
            first=first,
            order=order,
            inner=getattr(module, names[-1]).in_features,
            down=down,
            activation=activation_of(_one_of(module, FUNCTIONS, "activation")),
        )

    def _mixture(self, module: Any, experts: Any) -> Mixture:
        shared = next((getattr(module, name) for name in SHARED if getattr(module, name, None)), None)
        gate = getattr(module, "shared_expert_gate", None)
        return Mixture(
            experts=self._experts(experts),
            router=self._router(_one_of(module, ROUTERS, "router"), module, experts.backend),
            shared=None if shared is None else self._plain_mlp(shared),
            shared_gate=None if gate is None else self._linear(gate),
        )

    def _router(self, gate: Any, owner: Any, backend: CpuBackend) -> Router:
        product = getattr(gate, "wg", gate)
        self._described.add(product)
        if hasattr(product, "packed"):
            logits = linear_of(product)
        else:
            logits = Linear(
                backend.as_blocks(product.weight.detach()), _float(getattr(product, "bias", None))
            )
        correction = None
        for place in (gate, getattr(gate, "moe_statics", gate), owner):
            if (found := getattr(place, "e_score_correction_bias", None)) is not None:
                self._described.add(place)
                correction = _float(found.flatten())
        config = self._config
        return Router(
            logits=logits,
            choices=gate.top_k,
            scoring=self._family.scoring,
            normalized=getattr(gate, "norm_topk_prob", True),
            factor=getattr(gate, "routed_scaling_factor", 1.0),
            correction=correction,
            groups=getattr(config, "n_group", None) or 1,
            kept_groups=getattr(config, "topk_group", None) or 1,
            tolerance=2 * getattr(gate, "router_jitter_noise", 0.0),
        )

    def _experts(self, module: Any) -> Mlp:
        from adamas_cli.models.packed_experts import PackedExperts

        if not isinstance(module, PackedExperts):
            raise NoCompiledFormError("the weights are not packed")
        self._described.update((module, *module.modules()))
        order: RowOrder = "halves"
        if len(module.gate_up) > 1:
            order = "apart"
        elif module.alternating:
            order = "alternating"
        biases = first_biases(module)
        return Mlp(
            first=[
                Linear(linear_of(part).weight, _float(bias))
                for part, bias in zip(module.gate_up, biases, strict=True)
            ],
            order=order,
            inner=module.down.in_features,
            down=Linear(module.down.packed, _float(module.down_bias)),
            activation=gate_of(module, self._config),
        )

    def _linear(self, module: Any) -> Linear:
        self._described.add(module)
        return linear_of(module)

    def _norm(self, owner: Any, name: str | None) -> Norm | None:
        """A norm by its name, or one for each head; None where there is none."""
        module = None if name is None else getattr(owner, name, None)
        if module is None:
            return None
        each = getattr(module, "norms", None)
        parts = [module] if each is None else list(each)
        self._described.update(parts)
        norms = [norm_of(part, self._config.hidden_size) for part in parts]
        return norms[0] if each is None else _stacked(norms)


def linear_of(module: Any) -> Linear:
    """A linear layer over weights in blocks. Raises NoCompiledFormError for any other."""
    from adamas_cli.models.packed_linear import PackedLinear

    if not isinstance(module, PackedLinear):
        kind = type(module)
        reason = "the weights are not packed" if kind is nn.Linear else f"no compiled form of {kind.__name__}"
        raise NoCompiledFormError(reason)
    return Linear(module.packed, module.bias)


def norm_of(module: Any, size: int) -> Norm:
    """The norm that a module computes; size: its width if it has no weight. Raises NoCompiledFormError."""
    kept, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    weight = torch.ones(size) if kept is None else kept.detach().float()
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", _LAYER_NORM_EPS))
    bias = _float(bias)
    probe = torch.linspace(-1, 2, weight.shape[-1]).sin().expand(weight.shape)
    dtype = torch.float32 if kept is None else kept.dtype
    expected = module(probe.to(dtype)).float()
    bound = max(_CLOSE, 4 * torch.finfo(dtype).eps) * expected.abs().max()
    for centred in (False, True):
        for whole in (weight, weight + 1):
            norm = Norm(whole.contiguous(), eps, bias, centred)
            if (_normalized(norm, probe.to(dtype).float()) - expected).abs().max() <= bound:
                return norm
    raise NoCompiledFormError(f"its norms have no compiled form: {type(module).__name__}")


def activation_of(function: Callable[[Tensor], Tensor]) -> Activation:
    """The activation that a function computes. Raises NoCompiledFormError."""
    found = function(_PROBE)
    for activation, known in ACTIVATIONS:
        if (found - known(_PROBE)).abs().max() <= _CLOSE:
            return activation
    name = getattr(function, "__name__", type(function).__name__)
    raise NoCompiledFormError(f"its activation has no compiled form: {name}")


def growth_of(config: Any) -> tuple[float, int] | None:
    """How queries grow with their position, as in Llama 4; see `AttentionWeights`."""
    rope = getattr(config, "rope_parameters", None) or {}
    rate = rope.get("llama_4_scaling_beta")
    return None if rate is None else (rate, rope["original_max_position_embeddings"])


def gate_of(experts: Any, config: Any) -> Activation:
    """The activation between experts' products. Raises NoCompiledFormError."""
    gate, up = 2 * _PROBE, 2 * _PROBE.flip(0)
    both = torch.stack((gate, up), -1).flatten() if experts.alternating else torch.cat((gate, up))
    found = experts.gated(both)
    limited = Activation(
        "swish", getattr(config, "swiglu_alpha", 1.0), getattr(config, "swiglu_limit", None), shift=1.0
    )
    for activation in (*(known for known, _ in ACTIVATIONS), limited):
        if (found - _gated(activation, gate, up)).abs().max() <= _CLOSE * up.abs().max():
            return activation
    raise NoCompiledFormError("its experts have no compiled form")


def first_biases(experts: Any) -> list[Tensor | None]:
    """The biases of each of the experts' first products, [experts, outputs]."""
    bias, count = experts.gate_up_bias, len(experts.gate_up)
    if bias is None or count == 1:
        return [bias] * count
    return [bias[:, ::2], bias[:, 1::2]] if experts.alternating else list(bias.chunk(2, -1))


def _gated(activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
    """The definition of a gated activation."""
    if activation.limit is not None:
        gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
    functions = {known.kind: function for known, function in ACTIVATIONS}
    if activation.kind == "swish":
        return gate * torch.sigmoid(activation.alpha * gate) * (up + activation.shift)
    return functions[activation.kind](gate) * (up + activation.shift)


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().float().contiguous()


def _normalized(norm: Norm, x: Tensor) -> Tensor:
    """The definition of a norm."""
    x = x - x.mean(-1, keepdim=True) if norm.centred else x
    out = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight
    return out if norm.bias is None else out + norm.bias


def _stacked(norms: Sequence[Norm]) -> Norm:
    """Norms of one kind, one for each head."""
    first, biases = norms[0], [norm.bias for norm in norms if norm.bias is not None]
    bias = torch.stack(biases) if biases else None
    return Norm(torch.stack([norm.weight for norm in norms]), first.eps, bias, first.centred)


def _has_weights(module: nn.Module) -> bool:
    """Whether a module has weights of its own, not only in its submodules."""
    return hasattr(module, "packed") or any(True for _ in module.parameters(recurse=False))


def _one_of(owner: Any, names: Sequence[str], what: str) -> Any:
    """The first of these attributes that exists. Raises NoCompiledFormError."""
    for name in names:
        if getattr(owner, name, None) is not None:
            return getattr(owner, name)
    raise NoCompiledFormError(f"its {what} has no compiled form: {type(owner).__name__}")


def _present(owner: Any, rows: Sequence[tuple[tuple[str, ...], T]], what: str) -> tuple[tuple[str, ...], T]:
    """The first row whose names all exist. Raises NoCompiledFormError."""
    for row in rows:
        if all(getattr(owner, name, None) is not None for name in row[0]):
            return row
    raise NoCompiledFormError(f"its {what} has no compiled form: {type(owner).__name__}")
