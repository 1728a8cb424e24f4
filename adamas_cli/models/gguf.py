"""Unpacks a GGUF file once into a folder in Hugging Face's layout, which later starts map into memory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.gguf_header import DamagedGgufError, GgufHeader, read_header
from adamas_cli.models.gguf_tokenizer import tokenizer_from_gguf
from adamas_cli.models.places import exclusive, unwritable, weights_directory
from adamas_cli.models.quiet import quiet_transformers, unpacking_shown
from adamas_cli.progress import Progress

if TYPE_CHECKING:
    import torch

LAYOUT = 1  # grows when what is written changes, so that older folders are made anew
ORIGIN = "adamas.json"  # beside the weights: where they came from
# What transformers and numpy raise for files they cannot read: damaged ones and unknown kinds.
UNREADABLE = (ValueError, KeyError, IndexError, TypeError, RuntimeError, NotImplementedError, OverflowError)


def weights_folder(sha256: str, dtype: str) -> Path:
    """Where the weights of the GGUF file with this hash are kept, unpacked to `dtype`."""
    return weights_directory() / f"{sha256[:16]}-{dtype}-{LAYOUT}"


def unpack(gguf: Path, sha256: str, dtype: torch.dtype, progress: Progress) -> Path:
    """The folder of the unpacked weights, tokenizer and settings of `gguf`; written if it is not there.

    Raises ModelUnavailableError for a damaged file, an unsupported architecture or a full disk.
    """
    name = str(dtype).removeprefix("torch.")
    folder = weights_folder(sha256, name)
    if folder.is_dir():
        return folder
    with exclusive(folder, progress):
        if not folder.is_dir():
            _unpack(gguf, sha256, dtype, folder, progress)
    return folder


def _unpack(gguf: Path, sha256: str, dtype: torch.dtype, folder: Path, progress: Progress) -> None:
    header = _header(gguf)
    progress.note(f"unpacking {gguf.name}; this takes about a minute, and is done once")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        _require_room(header, dtype, folder)
        with quiet_transformers():
            _write_model(gguf, header, dtype, unfinished, progress)
            tokenizer_from_gguf(gguf, progress).save_pretrained(unfinished)
        origin = {"file": gguf.name, "sha256": sha256, "license": header.keys.get("general.license")}
        (unfinished / ORIGIN).write_text(json.dumps(origin), encoding="utf-8")
        os.replace(unfinished, folder)
    except OSError as error:
        raise unwritable(folder.parent, error) from error
    except UNREADABLE as error:
        raise _unreadable(gguf, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_model(
    gguf: Path, header: GgufHeader, dtype: torch.dtype, folder: Path, progress: Progress
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    label = f"unpacking {gguf.name}"
    with unpacking_shown(label, header.tensors, progress):
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            config=config,
            gguf_file=gguf.name,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
    # The weights are plain tensors now, and transformers writes no model that calls itself quantized.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    model.config.name_or_path = ""
    model.save_pretrained(folder)


def _header(gguf: Path) -> GgufHeader:
    try:
        return read_header(gguf)
    except DamagedGgufError as error:
        raise ModelUnavailableError(f"cannot use {gguf}: {error}. Fetch it again.") from error
    except OSError as error:
        raise ModelUnavailableError(f"cannot read {gguf}: {error.strerror or error}") from error


def _require_room(header: GgufHeader, dtype: torch.dtype, folder: Path) -> None:
    needed = header.parameters * dtype.itemsize
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise ModelUnavailableError(
            f"unpacking needs {needed / 1e6:,.0f} MB in {folder.parent}, and {free / 1e6:,.0f} MB are free.\n"
            "Make room there, or set ADAMAS_CACHE_DIR to another folder."
        )


def _unreadable(gguf: Path, error: Exception) -> ModelUnavailableError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return ModelUnavailableError(
        f"cannot unpack {gguf}: {reason}\n"
        "It is damaged, or of a kind that this version of transformers cannot read."
    )
