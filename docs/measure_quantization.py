"""How quantized weights perform on a GPU: by flag, and from quantized checkpoints.

    python docs/measure_quantization.py FOLDER [SHAPE] [LENGTH]

Writes a model of random weights and several quantized copies into FOLDER, and needs no network. For each it
prints tokens per second with full attention and with Adamas, peak memory, how far its logits are from those
of the plain weights, and why steps are not CUDA graphs. The table is in docs/performance.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.timeline import Timeline
from adamas_cli.heap import give_back
from adamas_cli.lab.bench.document import random_document
from adamas_cli.lab.bench.model import ModelBench, tokens_needed
from adamas_cli.lab.bench.shapes import random_model
from adamas_cli.lab.bench.table import markdown_head, markdown_row
from adamas_cli.models import ModelFiles, load
from adamas_cli.models.folder import CONFIG, WEIGHTS, fingerprint
from adamas_cli.models.quantization import PACKAGES
from adamas_cli.progress import Silent
from adamas_cli.quiet import prepare_libraries

GENERATED, REPEATS = 64, 2
READ, SCORED = 512, 32  # tokens before the comparison of logits, and in it
BLOCK = 128  # rows and columns that share a scale in FP8
LARGEST = torch.finfo(torch.float8_e4m3fn).max
TITLES = ("weights", "full, tokens/s", "adamas, tokens/s", "peak memory", "logits off by", "steps")


def fp8_blocks(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Like DeepSeek's and Qwen's FP8 models: a scale for each block."""
    rows, columns = weight.shape
    above = (-rows % BLOCK, -columns % BLOCK)
    padded = torch.nn.functional.pad(weight.float(), (0, above[1], 0, above[0]))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scale = blocks.abs().amax((1, 3), keepdim=True) / LARGEST
    codes = (blocks / scale).flatten(0, 1).flatten(1, 2)[:rows, :columns]
    return {
        name: codes.contiguous().to(torch.float8_e4m3fn),
        f"{name}_scale_inv": scale[:, 0, :, 0].contiguous(),
    }


def fp8_rows(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Like compressed-tensors' FP8 models: a scale for each row."""
    scale = weight.float().abs().amax(1, keepdim=True) / LARGEST
    return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale.bfloat16()}


def int8_rows(name: str, weight: Tensor) -> dict[str, Tensor]:
    """The same in integers."""
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    return {name: (weight / scale).round().to(torch.int8), f"{name}_scale": scale.bfloat16()}


def compressed(form: str, kind: str) -> dict[str, object]:
    """The config of compressed-tensors for 8-bit weights, and activations of the same type."""
    common = {"num_bits": 8, "type": kind, "symmetric": True}
    weights = {**common, "strategy": "channel", "dynamic": False}
    inputs = {**common, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


FOLDERS: dict[str, tuple[Callable[[str, Tensor], dict[str, Tensor]], dict[str, object]]] = {
    "fp8, blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}),
    "compressed-tensors, fp8": (fp8_rows, compressed("float-quantized", "float")),
    "compressed-tensors, int8": (int8_rows, compressed("int-quantized", "int")),
}
SAVED = ("torchao-int8", "fp8", "bnb-4bit")  # ways whose models are saved and loaded again


def main(folder: Path, shape: str, length: int) -> None:
    """Print the table."""
    prepare_libraries(verbose=0, offline=True)
    plain = folder / "plain"
    write_plain(plain, shape, tokens_needed(length, GENERATED))
    print(f"{shape}, {length:,} tokens read\n\n{markdown_head(TITLES)}")
    reference = row("none", plain, "none", length, None)
    for way in PACKAGES:
        row(f"`{way}`", plain, way, length, reference, folder / way if way in SAVED else None)
    for name, (quantize, says) in FOLDERS.items():
        write_quantized(plain, folder / name, quantize, says)
        row(name, folder / name, "none", length, reference)
    for way in SAVED:
        if (folder / way / CONFIG).is_file():
            row(f"{way}, saved", folder / way, "none", length, reference)


def write_plain(directory: Path, shape: str, context: int) -> None:
    """A model of random weights, and the tokenizer that every folder needs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    random_model(shape, context, torch.bfloat16, device).save_pretrained(directory)
    write_tokenizer(directory)


def write_tokenizer(directory: Path) -> None:
    """A byte tokenizer, which nothing here reads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.save(str(directory / "tokenizer.json"))


def write_quantized(
    plain: Path,
    directory: Path,
    quantize: Callable[[str, Tensor], dict[str, Tensor]],
    says: dict[str, object],
) -> None:
    """The model of `plain` with its projections quantized, and a config that says so."""
    directory.mkdir(exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(plain / WEIGHTS).items():
        tensors |= quantize(name, weight) if name.endswith("proj.weight") else {name: weight}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((plain / CONFIG).read_text(encoding="utf-8"))
    (directory / CONFIG).write_text(json.dumps({**config, "quantization_config": says}), encoding="utf-8")
    write_tokenizer(directory)


def row(
    name: str,
    directory: Path,
    quantization: str,
    length: int,
    reference: Tensor | None,
    saved: Path | None = None,
) -> Tensor | None:
    """Print one row, save the model if asked to, and return its logits. If a model cannot be loaded, its row
    says why.
    """
    give_back()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        cells, logits = measure(
            ModelFiles(name, directory, fingerprint(directory)), quantization, length, saved
        )
    except Exception as error:  # whatever it is, the others are measured too
        print(markdown_row([name, "", "", "", "", str(error).replace("\n", " ")]), flush=True)
        return None
    rates, peak, how = cells[:2], cells[2], cells[3]
    off = "" if reference is None else f"{(logits - reference).norm() / reference.norm():.3f}"
    print(markdown_row([name, *rates, peak, off, how]), flush=True)
    return logits


def measure(
    files: ModelFiles, quantization: str, length: int, saved: Path | None
) -> tuple[list[str], Tensor]:
    """Rates in both ways, peak memory and how steps run; and logits, float32 [SCORED, vocabulary]."""
    loaded = load(files, quantization=quantization, progress=Silent())
    if saved is not None:
        loaded.model.save_pretrained(saved)
        write_tokenizer(saved)
    tokens = max(tokens_needed(length, GENERATED), READ + SCORED)
    document = random_document(loaded.model.config.vocab_size, tokens)
    settings = AttentionSettings("adamas")
    said: list[str] = []
    bench = ModelBench(loaded, settings, document, GENERATED, REPEATS, None, said.append)
    measured = {test.attention: test for test in bench.measure([length]) if test.generated}
    timeline = Timeline(loaded, settings, context=READ + SCORED)
    for _ in timeline.read(document.ids[:READ]):
        pass
    logits = timeline.score(document.ids[READ : READ + SCORED], sparse=False).float().cpu()
    peak = max(test.peak_memory_bytes for test in measured.values())
    rates = [f"{measured[way].rate:,.1f}" if way in measured else "" for way in ("full", "adamas")]
    obstacle = next((line for line in said if "CUDA graph" in line), timeline.step_reason)
    return [*rates, f"{peak / 1e9:.2f} GB", f"{loaded.quantization}: {obstacle or 'graph'}"], logits


if __name__ == "__main__":
    place, shape, length = (*sys.argv[1:], *("qwen2.5-0.5b", "4096")[len(sys.argv) - 2 :])
    main(Path(place), shape, int(length))
