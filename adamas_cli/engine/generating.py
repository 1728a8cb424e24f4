"""The attention alone, for models that transformers runs: `generate` with a cache that chooses tokens.

Importing this module gives transformers the name `adamas` for `attn_implementation`. A model loaded by it
attends as with `sdpa`, until a call comes with a cache made here.
"""

from __future__ import annotations

from typing import Any

from adamas_kernels.contract import SparseSettings
from adamas_kernels.dispatch import load, obstacle
from torch import Tensor
from transformers import PreTrainedModel

from adamas_cli.cache.cache import RETRACTING, KVCache
from adamas_cli.cache.full import FullLayer
from adamas_cli.cache.mode import READING, Mode
from adamas_cli.cache.placement import placement_on
from adamas_cli.cache.sliding import SlidingLayer
from adamas_cli.engine.attention import AttentionSettings, decide_for
from adamas_cli.engine.interface import NAME, Pass, begin, end, install, now, register
from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.shape import shape_of_config
from adamas_cli.settings import DENSE_LAYERS

DEFAULT_CONTEXT = 32768
_HOOKED = "adamas_generates"  # attribute of a model whose calls are told of

register()


class GeneratingCache(KVCache):
    """The cache of one sequence. Several tokens of a call are read with full attention; a single one attends
    as an answer's token.
    """

    answering = Mode(answers=True)
    _answers = False  # whether the last call was a single token

    def mode(self, tokens: int) -> Mode:
        """How the next call of this many tokens attends. Changes: makes codes before the first single one."""
        if tokens > 1 or not self.get_seq_length():
            self._answers = False
            return READING
        if not self._answers:
            self.begin_answer(self.answering)
            self._answers = True
        return self.answering


def cache_for(
    model: PreTrainedModel,
    *,
    context: int = DEFAULT_CONTEXT,
    budget: int | None = None,
    error: float | None = None,
    scorer: str = SparseSettings.scorer,
    dense_layers: int = DENSE_LAYERS,
    backend: str = "auto",
) -> GeneratingCache:
    """A cache for one sequence, to give to `model.generate` as `past_key_values`.

    context: tokens to have room for; more are possible. budget: how many tokens each new token attends to in
    a layer, None to choose by the context. error: skip tokens below this estimated share of attention.
    dense_layers: first layers that keep full attention. The model attends through Adamas from now on,
    whatever it was loaded with.

    Raises ModelUnavailableError for a model whose attention is not served, and UsageError for settings that
    no backend here supports.
    """
    config = model.config.get_text_config()
    shape = shape_of_config(config)
    others = {layer.kind for layer in shape.by_layer} - RETRACTING
    if others or shape.latent:
        others |= {"latent_attention"} if shape.latent else set()
        raise _unserved(f"it has layers of other kinds: {', '.join(sorted(others))}")
    if shape.obstacle is not None:
        raise _unserved(shape.obstacle)
    chosen = SparseSettings(budget=budget or SparseSettings.budget, scorer=scorer, error=error)
    settings = AttentionSettings("adamas", chosen, dense_layers, backend, budget_by_context=budget is None)
    decided = decide_for(shape, model.dtype, model.device, settings.asked(), context)
    sparse = settings.resolve(decided)
    cache = GeneratingCache.for_model(
        config,
        served=True,
        sparse=sparse,
        dense_layers=dense_layers,
        placement=placement_on(model.device),
        device=model.device,
    )
    cache.reserve(context)
    dense = load("triton") if obstacle("triton", model.device) is None else None
    cache.answering = Mode(answers=True, sparse=sparse, dense=dense)
    if model.config._attn_implementation != NAME:
        install(model)
    if not hasattr(model, _HOOKED):
        model.register_forward_pre_hook(_before, with_kwargs=True)
        model.register_forward_hook(_after, with_kwargs=True, always_call=True)
        setattr(model, _HOOKED, True)
    return cache


def _before(
    model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Begin a pass for a call with a cache made here. Raises ValueError for more than one sequence, and for
    padding.
    """
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, GeneratingCache):
        return None
    tokens, mask = _tokens(args, kwargs), kwargs.get("attention_mask")
    if tokens.shape[0] != 1 or (isinstance(mask, Tensor) and not bool(mask.all())):
        raise ValueError("a cache of adamas holds one sequence without padding: generate them one by one")
    count = tokens.shape[1]
    mode = cache.mode(count)
    cache.make_room(count)
    begin(Pass(cache, mode))
    return args, kwargs | {"attention_mask": None}


def _after(model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """End the pass. output: None if the call has failed. Raises ModelUnavailableError if layers have not
    attended through this project, or not once each: what they computed is then wrong.
    """
    one = now()
    if one is None or one.cache is not kwargs.get("past_key_values"):
        return
    end()
    if output is None:
        return
    count = _tokens(args, kwargs).shape[1]
    one.cache.advance(count, one.mode)
    lengths = {layer.length for layer in one.cache.kept if isinstance(layer, FullLayer | SlidingLayer)}
    if len(lengths) > 1 or lengths == {0}:
        raise _unserved("its layers do not attend once each through transformers' interface")


def _unserved(why: str) -> ModelUnavailableError:
    return ModelUnavailableError(f"Adamas does not serve this model's attention in `generate`: {why}")


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The new tokens of a call, or their embeddings: [sequences, tokens, ...]."""
    given = args[0] if args else kwargs.get("input_ids")
    tokens: Tensor = kwargs["inputs_embeds"] if given is None else given
    return tokens
