"""The forms in which checkpoints store quantized weights, and how a config names them; without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FLOAT8_BLOCK = (128, 128)  # rows and columns that share a scale, by default


@dataclass(frozen=True)
class Told:
    """What a config says about weights that their tensors do not. bits: of a code, the maximum if there are
    several. symmetric: whether all zero points are in the middle. zero_shift: to add to stored zero points.
    block: rows and columns that share a scale.
    """

    bits: int | None = None
    symmetric: bool = False
    zero_shift: int = 0
    block: tuple[int, int] = FLOAT8_BLOCK


@dataclass(frozen=True)
class Form:
    """Tensors by the suffixes of their names, after the layer's. needs: required tensors; may: optional ones;
    minimums: those that show that codes come with minimums; dtype: of the first tensor, by safetensors' name,
    if that distinguishes it from a plain weight. bits: of a code, None if the config says; held: bits of a
    number in memory, None if it follows from the others. weight: suffix of the resulting weight's name.
    transposed: whether the last two axes are swapped relative to the model's.
    """

    needs: tuple[str, ...]
    may: tuple[str, ...] = ()
    minimums: tuple[str, ...] = ()
    dtype: str | None = None
    bits: int | None = None
    held: float | None = None
    weight: str = ".weight"
    transposed: bool = False


AWQ = Form((".qweight", ".qzeros", ".scales"), minimums=(".qzeros",), bits=4)
GPTQ = Form((".qweight", ".qzeros", ".scales"), may=(".g_idx",), minimums=(".qzeros",))
PACKED = Form(
    (".weight_packed", ".weight_scale", ".weight_shape"), may=(".weight_zero_point", ".weight_g_idx"),
    minimums=(".weight_zero_point",), dtype="I32",
)  # fmt: skip
INT8 = Form(
    (".weight", ".weight_scale"), may=(".weight_zero_point",), minimums=(".weight_zero_point",),
    dtype="I8", bits=8,
)  # fmt: skip
FLOAT8 = Form((".weight", ".weight_scale"), dtype="F8_E4M3", bits=8)
FLOAT8_BLOCKS = Form((".weight", ".weight_scale_inv"), dtype="F8_E4M3", bits=8)
MLX = Form((".weight", ".scales", ".biases"), minimums=(".biases",), dtype="U32")
MLX_FLOATS = Form((".weight", ".scales"), dtype="U32", bits=4, held=4.25)
MXFP4_PACKED = Form((".weight_packed", ".weight_scale"), dtype="U8", bits=4, held=4.25)
MXFP4_EXPERTS = Form(("_blocks", "_scales"), bits=4, held=4.25, weight="", transposed=True)


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint stores its weights. forms: the possible ones; told: for all layers, and for some by
    layer name.
    """

    method: str
    forms: tuple[Form, ...]
    told: Told = Told()
    of_layers: Mapping[str, Told] | None = None

    def of(self, layer: str) -> Told:
        """What the config says about a layer."""
        return (self.of_layers or {}).get(layer, self.told)


def scheme_of(stored: Mapping[str, Any]) -> Scheme | None:
    """The scheme of a config's `quantization_config`; None if it is unsupported or invalid."""
    method = str(stored.get("quant_method"))
    find = _METHODS.get(method)
    try:
        return find(stored) if find is not None else None
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        return None


def _awq_scheme(stored: Mapping[str, Any]) -> Scheme | None:
    version = str(stored.get("version") or stored.get("format") or "gemm").lower()
    bits = stored.get("bits") or stored.get("w_bit")
    if bits != 4 or version != "gemm" or stored.get("backend") == "llm-awq":  # it orders codes differently
        return None
    return Scheme("awq", (AWQ,), Told(4))


def _gptq_scheme(stored: Mapping[str, Any]) -> Scheme | None:
    shifts = {"gptq": 1, "gptq_v2": 0}
    kind = "marlin" if stored.get("is_marlin_format") else stored.get("checkpoint_format")
    kind = str(kind or stored.get("format") or "gptq").lower()
    bits = stored.get("bits") or stored.get("w_bit")
    if bits not in (2, 3, 4, 8) or kind not in shifts:
        return None
    return Scheme("gptq", (GPTQ,), Told(bits, bool(stored.get("sym")), zero_shift=shifts[kind]))


# Formats of compressed-tensors.
_COMPRESSED = {
    "pack-quantized": (PACKED,),
    "int-quantized": (INT8,),
    "float-quantized": (FLOAT8,),
    "naive-quantized": (INT8, FLOAT8),
    "mxfp4-pack-quantized": (MXFP4_PACKED,),
    "dense": (),
}


def _compressed_scheme(stored: Mapping[str, Any]) -> Scheme | None:
    groups = [group for group in (stored.get("config_groups") or {}).values() if isinstance(group, dict)]
    formats = {str(group.get("format") or stored.get("format")) for group in groups} or {"dense"}
    sparse = (stored.get("sparsity_config") or {}).get("format", "dense")
    rotated = (stored.get("transform_config") or {}).get("config_groups")
    if not formats <= _COMPRESSED.keys() or sparse != "dense" or rotated:
        return None
    weights = [group.get("weights") or {} for group in groups]
    blocks = [weight["block_structure"] for weight in weights if weight.get("block_structure")]
    bits = [weight["num_bits"] for weight in weights if isinstance(weight.get("num_bits"), int)]
    told = Told(max(bits, default=None), block=_block(blocks[0] if blocks else None))
    return Scheme("compressed-tensors", tuple(form for name in formats for form in _COMPRESSED[name]), told)


def _block(told: Any) -> tuple[int, int]:
    return (int(told[0]), int(told[1])) if told else FLOAT8_BLOCK


def _float8_scheme(stored: Mapping[str, Any]) -> Scheme | None:
    if str(stored.get("fmt") or "e4m3").lower() != "e4m3":
        return None
    told = Told(block=_block(stored.get("weight_block_size")))
    return Scheme(str(stored["quant_method"]), (FLOAT8_BLOCKS, FLOAT8), told)


def _modelopt_scheme(stored: Mapping[str, Any]) -> Scheme | None:
    return Scheme("modelopt", (FLOAT8,)) if stored.get("quant_algo") == "FP8" else None


def _mlx_scheme(stored: Mapping[str, Any]) -> Scheme | None:
    def told(of: Mapping[str, Any]) -> Told:
        return Told(of.get("bits"))

    forms = {"affine": MLX, "mxfp4": MLX_FLOATS}
    form = forms.get(stored.get("mode", "affine"))
    if form is None or stored.get("bits") not in (2, 3, 4, 5, 6, 8):
        return None
    layers = {name: told(of) for name, of in stored.items() if isinstance(of, dict)}
    return Scheme("mlx", (form,), told(stored), layers)


_METHODS: Mapping[str, Callable[[Mapping[str, Any]], Scheme | None]] = {
    "awq": _awq_scheme,
    "gptq": _gptq_scheme,
    "compressed-tensors": _compressed_scheme,
    "fp8": _float8_scheme,
    "fbgemm_fp8": _float8_scheme,
    "modelopt": _modelopt_scheme,
    "mxfp4": lambda stored: Scheme("mxfp4", (MXFP4_EXPERTS,)),
    "mlx": _mlx_scheme,
}
