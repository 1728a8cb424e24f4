"""The settings of a GGUF file's model in Hugging Face's layout, written once: config and tokenizer."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.gguf.architectures import architecture_of
from adamas_cli.models.gguf.file import GgufFile
from adamas_cli.models.gguf.header import DamagedGgufError, read_header
from adamas_cli.models.gguf.keys import Keys
from adamas_cli.models.places import exclusive, settings_directory, unwritable
from adamas_cli.models.quiet import quiet_transformers
from adamas_cli.models.stops import GENERATION
from adamas_cli.models.vocabulary import ARRAYS, end_ids, tokenizer_of
from adamas_cli.progress import Progress

LAYOUT = 1  # increases when the output changes, so that older folders are rewritten
ORIGIN = "adamas.json"  # next to the settings: the file they belong to
# Raised by transformers and tokenizers for vocabularies that they cannot read.
UNREADABLE = (ValueError, KeyError, IndexError, TypeError, RuntimeError, NotImplementedError, OverflowError)

log = logging.getLogger(__name__)


def settings_folder(sha256: str) -> Path:
    """The settings folder of the GGUF file with this hash."""
    return settings_directory() / f"{sha256[:16]}-{LAYOUT}"


def write_settings(path: Path, sha256: str, progress: Progress) -> Path:
    """The folder of the settings of the GGUF file at `path`, written if missing.

    Raises ModelUnavailableError for a damaged file, an unsupported architecture, or a full disk.
    """
    folder = settings_folder(sha256)
    if folder.is_dir():
        return folder
    with exclusive(folder, progress):
        if not folder.is_dir():
            _write(path, sha256, folder, progress)
    return folder


def config_of(file: GgufFile, progress: Progress) -> dict[str, Any]:
    """The config of a file's model as transformers writes it. Raises ModelUnavailableError."""
    architecture = architecture_of(file)
    keys = Keys(file.keys, file.architecture, {name: shape[0] for name, shape in file.shapes()})
    try:
        config = architecture.config(keys, file)
    except ModelUnavailableError as error:
        raise ModelUnavailableError(f"cannot use {file.path}: {error.message}.") from error
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ModelUnavailableError(
            f"cannot use {file.path}: its keys describe no valid model: {error}."
        ) from error
    _, unknown = keys.left()
    if unknown and log.isEnabledFor(logging.INFO):
        progress.note(f"{file.path.name}: unknown keys: {', '.join(unknown)}")
    return config


def _write(path: Path, sha256: str, folder: Path, progress: Progress) -> None:
    file = GgufFile(path)
    config = config_of(file, progress)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    origin = {"file": path.name, "sha256": sha256, "license": file.keys.get("general.license")}
    try:
        unfinished.mkdir()
        (unfinished / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        with quiet_transformers():
            keys = read_header(file.files[0], ARRAYS).keys
            tokenizer_of(keys, progress).save_pretrained(unfinished)
        generation = {"eos_token_id": end_ids(keys)}
        (unfinished / GENERATION).write_text(json.dumps(generation), encoding="utf-8")
        (unfinished / ORIGIN).write_text(json.dumps(origin), encoding="utf-8")
        os.replace(unfinished, folder)
    except OSError as error:
        raise unwritable(folder.parent, error) from error
    except DamagedGgufError as error:
        raise ModelUnavailableError(f"cannot use {path}: {error}. Fetch it again.") from error
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelUnavailableError(f"cannot use {path}: its vocabulary cannot be read: {reason}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
