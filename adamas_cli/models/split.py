"""A rank's share of a model: some of its heads and a part of each MLP, as a smaller model of its own.

transformers' modules are built for the share's config, so caches, codes, kernels and plans see a smaller
model. Weights are not torch's DTensors: they may be packed in blocks, of which a rank reads its rows, or its
columns up to borders of blocks.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from adamas_kernels.blocks import BlockWeight, block_size
from torch import Tensor, nn

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.borders import borders, splits_head
from adamas_cli.models.families import from_config
from adamas_cli.models.filling import Placing, Source, fill
from adamas_cli.models.gguf.stored import Stored

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from adamas_cli.ranks.group import Ranks

log = logging.getLogger(__name__)

# Kinds of parts in transformers' plans: a linear layer keeps some of its outputs (rows of its weight) or some
# of its inputs (columns), and then its products are summed; a norm within heads stays whole.
ROWS, COLUMNS, WHOLE = "colwise", "rowwise", "replicated_with_grad_allreduce"


class Summed(nn.Module):
    """A linear layer of which each rank has some inputs: the ranks' products are summed. product: this
    rank's, which adds a bias in the first rank only.
    """

    def __init__(self, product: Any, ranks: Ranks) -> None:
        super().__init__()
        self.product, self.ranks = product, ranks
        self.in_features, self.out_features = product.in_features, product.out_features

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features], which differs between ranks -> [..., out_features], the same in all."""
        return self.ranks.sum(self.product(x))


class Gathered(nn.Module):
    """A linear layer of which each rank has some outputs, in the order of ranks. product: this rank's."""

    def __init__(self, product: Any, ranks: Ranks) -> None:
        super().__init__()
        self.product, self.ranks = product, ranks
        self.in_features, self.out_features = product.in_features, product.out_features * ranks.count

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features], the same in all ranks -> [..., out_features], the same in all."""
        return self.ranks.gather(self.product(x))


def ranks_of(model: nn.Module) -> Ranks | None:
    """The ranks that share a model, None for a whole one."""
    return next((part.ranks for part in model.modules() if isinstance(part, Summed)), None)


def share_of(config: PreTrainedConfig, rank: int, count: int) -> PreTrainedConfig:
    """The config of a rank's share. Raises ValueError for a model that is too small."""
    share = copy.deepcopy(config)
    text = share.get_text_config()
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    text.head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    text.num_attention_heads, text.num_key_value_heads = heads // count, groups // count
    first, last = borders(text.intermediate_size, count)[rank : rank + 2]
    text.intermediate_size = last - first
    return share


def require_splittable(name: str, config: PreTrainedConfig, count: int) -> None:
    """Raises ModelUnavailableError if a model cannot be split over this many ranks."""
    if reason := split_obstacle(config, count):
        raise ModelUnavailableError(f"{name} cannot be split over {count} GPUs: {reason}.")


def split_obstacle(config: PreTrainedConfig, count: int) -> str | None:
    """Why a model cannot be split over this many ranks, or None: transformers must have a plan with kinds of
    parts that are known here, and the shares must have exactly the shapes of that plan.
    """
    text = config.get_text_config()
    plan = getattr(text, "base_model_tp_plan", None)
    if not plan:
        return "transformers has no plan for its type"
    if others := sorted(set(plan.values()) - {ROWS, COLUMNS, WHOLE}):
        if any("expert" in part for part in plan):
            return "experts are not split yet"
        return f"transformers' plan has parts of kind {others[0]}, which are not split here"
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", None)
    if not isinstance(heads, int) or heads % count:
        return f"its {heads} KV heads are not a multiple of {count}"
    inner = getattr(text, "intermediate_size", None)
    if not isinstance(inner, int) or inner < count:
        return "its MLPs are not all of one size"
    try:
        whole = _blank(config)
        shares = [dict(_blank(share_of(config, rank, count)).named_parameters()) for rank in {0, count - 1}]
    except Exception as error:  # a family's code may raise anything for a share's config
        log.debug("%s: %s", text.model_type, error)
        return "its type cannot be built with fewer heads"
    kinds = Kinds(whole)
    for name, parameter in whole.named_parameters():
        if not all(_fits(kinds.of(name), parameter, share.get(name)) for share in shares):
            return f"its {name} does not follow from the number of heads and the size of MLPs"
    return None


def _blank(config: PreTrainedConfig) -> PreTrainedModel:
    """A model without memory."""
    with torch.device("meta"):
        return from_config(copy.deepcopy(config))


def _fits(kind: str | None, whole: Tensor, share: Tensor | None) -> bool:
    """Whether a share's parameter is cut where its kind says so, and nowhere else."""
    if share is None or share.dim() != whole.dim():
        return False
    axis = {ROWS: 0, COLUMNS: 1}.get(kind or WHOLE, -1)
    sizes = enumerate(zip(whole.shape, share.shape, strict=True))
    return all(part < all_ if index == axis else part == all_ for index, (all_, part) in sizes)


class Kinds:
    """How the parts of a model are split, by transformers' plan."""

    def __init__(self, model: PreTrainedModel) -> None:
        decoder = model.get_decoder()
        within = next(name for name, module in model.named_modules() if module is decoder)
        plan = model.config.get_text_config().base_model_tp_plan
        self._patterns = [
            (re.compile(re.escape(f"{within}.{part}").replace(r"\*", r"\d+")), kind)
            for part, kind in plan.items()
        ]
        self.head: str | None = None  # the name of the last matrix, if its rows are split

    def split_head(self, name: str) -> None:
        """Have the last matrix's rows split too: transformers' plans are for the layers."""
        self.head = name
        self._patterns.append((re.compile(re.escape(name)), ROWS))

    def of(self, name: str) -> str | None:
        """The kind of a parameter by its full name, None if it is whole."""
        module = name.rpartition(".")[0]
        return next((kind for pattern, kind in self._patterns if pattern.fullmatch(module)), None)

    def by_column(self, model: nn.Module) -> list[str]:
        """The layers of which each rank has some inputs."""
        return [name for name, _ in model.named_modules() if self.of(f"{name}.weight") == COLUMNS]


class Split:
    """How one rank builds its share, from the whole model's config and weights."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._inner = 0  # the size of the whole model's MLPs

    def config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """The share's config, from the whole model's."""
        self._inner = config.get_text_config().intermediate_size
        return share_of(config, self.ranks.rank, self.ranks.count)

    def fill(
        self,
        model: PreTrainedModel,
        source: Source,
        dtype: torch.dtype,
        device: torch.device,
        placing: Placing,
    ) -> None:
        """Give memory to a share without any, see `filling.fill`. source: of the whole model."""
        kinds = self._shorten_head(model)
        if not self.ranks.first:
            for name in kinds.by_column(model):
                model.get_submodule(name).register_parameter("bias", None)
        parts = SplitSource(source, model, kinds, self.ranks, borders(self._inner, self.ranks.count))
        fill(model, parts, dtype, device, placing)
        self._join(model, kinds)

    def join(self, model: PreTrainedModel) -> None:
        """Have the ranks compute together with a share that has weights."""
        self._join(model, self._shorten_head(model))

    def _join(self, model: PreTrainedModel, kinds: Kinds) -> None:
        for name in kinds.by_column(model):
            model.set_submodule(name, Summed(model.get_submodule(name), self.ranks))
        if kinds.head is not None:
            model.set_submodule(kinds.head, Gathered(model.get_submodule(kinds.head), self.ranks))

    def _shorten_head(self, model: PreTrainedModel) -> Kinds:
        """Leave this rank's rows of the last matrix, unless it is the embeddings' or has another number."""
        kinds, head, count = Kinds(model), model.get_output_embeddings(), self.ranks.count
        tied = model.config.get_text_config().tie_word_embeddings
        if type(head) is nn.Linear and splits_head(head.out_features, count, tied=tied):
            kinds.split_head(next(name for name, module in model.named_modules() if module is head))
            rows = head.out_features // count
            mine = slice(self.ranks.rank * rows, (self.ranks.rank + 1) * rows)
            head.weight = nn.Parameter(head.weight[mine].detach().clone(), requires_grad=False)
            if head.bias is not None:
                head.bias = nn.Parameter(head.bias[mine].detach().clone(), requires_grad=False)
            head.out_features = rows
        return kinds


class SplitSource:
    """A rank's parts of what another source has; see `filling.Source`. inner: where the ranks' parts of an
    MLP begin and end.
    """

    def __init__(
        self, whole: Source, model: PreTrainedModel, kinds: Kinds, ranks: Ranks, inner: Sequence[int]
    ) -> None:
        self.path: Path = whole.path
        self._whole, self._kinds, self._ranks = whole, kinds, ranks
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._inner = inner

    def stored(self, name: str) -> Stored:
        """See `Source.stored`."""
        found = self._whole.stored(name)
        kind = self._kinds.of(name)
        if kind == ROWS:
            return found.part(*self._range(found.shape[0], self._shapes[name][0]))
        if kind == COLUMNS and len(found.shape) > 1:
            return self._columns(name, found)
        return found

    def place(self, name: str) -> tuple[Path, int] | None:
        """See `Source.place`."""
        return self._whole.place(name) if self._kinds.of(name) in (None, WHOLE) else None

    def experts(self, module: str) -> tuple[Sequence[BlockWeight], BlockWeight] | None:
        """See `Source.experts`: models with experts are not split."""
        return None

    def require_all_used(self) -> None:
        """See `Source.require_all_used`."""
        self._whole.require_all_used()

    def _columns(self, name: str, found: Stored) -> Stored:
        first, last = self._range(found.shape[1], self._shapes[name][1])
        block, _ = block_size(found.kind)
        if first % block or last % block:
            raise ModelUnavailableError(
                f"cannot use {self.path} on {self._ranks.count} GPUs: {name} is in blocks of {block} numbers "
                f"({found.kind}), and a part would end within one."
            )
        return found.columns(first, last)

    def _range(self, whole: int, part: int) -> tuple[int, int]:
        """This rank's part of an axis: of heads, of which all ranks have as many, or of an MLP."""
        rank = self._ranks.rank
        if part * self._ranks.count == whole:
            return rank * part, (rank + 1) * part
        return self._inner[rank], self._inner[rank + 1]
