"""Which checkpoint tensors make a parameter of transformers' model, by transformers' own rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Origin:
    """What a parameter is made from. converter: transformers' rule, or None for one unchanged tensor.
    sources: the tensors for each of its patterns.
    """

    converter: Any
    sources: dict[str, list[str]] = field(default_factory=dict)

    @property
    def only(self) -> str | None:
        """The one tensor that is the parameter unchanged; None if conversion is needed."""
        return next(iter(self.sources)) if self.converter is None else None

    @property
    def stacked(self) -> list[list[str]] | None:
        """For experts' weights that are only stacked and concatenated: the tensors of each side."""
        from transformers.core_model_loading import Concatenate, MergeModulelist

        if self.converter is None:
            return None
        ways = [(type(operation), operation.dim) for operation in self.converter.operations]
        if ways not in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)]):
            return None
        return [self.sources[pattern] for pattern in self.converter.source_patterns]

    def convert(self, name: str, model: PreTrainedModel, tensor: Callable[[str], Tensor]) -> Tensor:
        """The parameter's numbers, computed from its tensors'."""
        converter = deepcopy(self.converter)
        for pattern, sources in self.sources.items():
            for source in sources:
                converter.add_tensor(name, source, pattern, tensor(source))
        found = converter.convert(name, model=model, config=model.config)[name]
        return found[0] if isinstance(found, Sequence) else found


def origins(model: PreTrainedModel, weights: Iterable[str]) -> dict[str, Origin]:
    """What each parameter and buffer of a model is made from; weights: the names in a checkpoint."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    wanted, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, Origin] = {}
    for name in sorted(weights, key=_in_order):
        target, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if target not in wanted and name in wanted:
            target, pattern = name, None
        if pattern is None:
            found[target] = Origin(None, {name: [name]})
            continue
        rule = by_pattern[pattern]
        for other in rule.target_patterns:
            full = target.replace(rule.target_patterns[0], other)
            found.setdefault(full, Origin(rule)).sources.setdefault(pattern, []).append(name)
    return found


def _in_order(name: str) -> list[Any]:
    """A sort key that compares numbers in a name by value."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]
