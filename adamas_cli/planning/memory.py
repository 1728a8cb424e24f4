"""The memory that a question will take."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from adamas_cli.models.places import packed_files
from adamas_cli.models.shape import ITEM_BYTES, ModelShape, WeightCount

# What Python, torch, compiled code and the tokenizer take on a CPU, as measured with three models.
PROGRAM = 850_000_000


@dataclass(frozen=True)
class Needs:
    """Bytes. exact: whether the weights' are those of a file that holds them as they will be loaded."""

    weights: int
    cache: int
    codes: int
    program: int
    exact: bool

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.codes + self.program

    def as_json(self) -> dict[str, object]:
        """By the names that the fields have here."""
        fields = asdict(self)
        exact = fields.pop("exact")
        return {f"{name}_bytes": size for name, size in fields.items()} | {
            "total_bytes": self.total,
            "weights_exact": exact,
        }


def needs_on_cpu(
    shape: ModelShape,
    count: WeightCount,
    fingerprint: str,
    *,
    tokens: int,
    dtype: str,
    packed: bool,
    sparse: bool,
    dense_layers: int,
) -> Needs:
    """For so many tokens in the cache; packed: the weights' matrices are, as `packs` decides."""
    item = ITEM_BYTES[dtype]
    known = [file for file in packed_files(fingerprint) if f"-{dtype}-" in file.name] if packed else []
    if known:
        weights = known[-1].stat().st_size + count.rest * item
    else:
        weights = count.packed_bytes(item) if packed else count.bytes(item)
    return Needs(
        weights=weights,
        cache=shape.cache_bytes(tokens, item),
        codes=shape.code_bytes(tokens, dense_layers) if sparse else 0,
        program=PROGRAM,
        exact=bool(known) or not packed,
    )
