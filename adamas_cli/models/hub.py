"""Models on the Hugging Face hub, kept in the hub library's own cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.folder import ADAPTER_CONFIG, ADAPTER_FILES, missing, require_complete
from adamas_cli.models.gguf.file import parts_of
from adamas_cli.models.quantizations import models_among, one_of
from adamas_cli.progress import Progress

TIMEOUT_S = 8.0
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
UNWANTED = ("*/*", "*consolidated*", "*.onnx*", "training_args*")
OF_ADAPTERS = ("adapter_*.safetensors", *WANTED[1:-1])  # a repository may also have a merged model


def cached_snapshot(repository: str) -> Path | None:
    """The folder of a complete model in the hub library's cache, or None; uses no network.

    Raises ModelUnavailableError if `repository` is not a valid name on the hub.
    """
    folder = _snapshot(repository, WANTED)
    return folder if folder is not None and missing(folder) is None else None


def cached_adapter(repository: str) -> Path | None:
    """The folder of a complete adapter, like `cached_snapshot`."""
    folder = _snapshot(repository, OF_ADAPTERS)
    whole = folder is not None and all((folder / name).is_file() for name in ADAPTER_FILES)
    return folder if whole else None


def _snapshot(repository: str, wanted: Sequence[str]) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True, allow_patterns=list(wanted)))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelUnavailableError(f"{repository} is not a model name: {error}") from error


def download(repository: str, progress: Progress, tag: str = "", wanted: Sequence[str] = WANTED) -> Path:
    """The folder of a model's newest version, or its GGUF file if it has no safetensors, after fetching
    anything not yet cached. tag: selects a GGUF file, such as `Q4_K_M`. wanted: files of the folder.

    Raises ModelUnavailableError if there is no such model, it is gated, has neither format, or the hub cannot
    be reached; SeveralFilesError if it has several GGUF files.
    """
    from huggingface_hub import errors

    try:
        return _download(repository, progress, tag, wanted)
    except errors.GatedRepoError as error:
        raise ModelUnavailableError(
            f"{repository} is gated: its owner asks you to accept terms first.\n"
            "Accept them on its page on the hub, then set HF_TOKEN or run `hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ModelUnavailableError(
            f"the Hugging Face hub has no public model {repository}.\n"
            "Check the name, or set HF_TOKEN if it is private. `adamas models ls` lists the short names."
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelUnavailableError(
            f"{repository} is not on this machine, and HF_HUB_OFFLINE forbids fetching it."
        ) from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelUnavailableError(
            f"cannot fetch {repository} from the Hugging Face hub: {reason}\n"
            "Check the connection, or use a model that is on this machine (`adamas models ls`)."
        ) from error


def _download(repository: str, progress: Progress, tag: str, wanted: Sequence[str]) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils import filter_repo_objects

    info = HfApi().model_info(repository, files_metadata=True, timeout=TIMEOUT_S)
    held = info.siblings or []
    gguf = _gguf(repository, {PurePosixPath(file.rfilename): file.size or 0 for file in held}, tag)
    if gguf is not None:
        parts = {part.as_posix() for part in parts_of(gguf)}
        files = [file for file in held if file.rfilename in parts]
    else:
        files = list(
            filter_repo_objects(
                held,
                allow_patterns=list(wanted),
                ignore_patterns=list(UNWANTED),
                key=lambda file: file.rfilename,
            )
        )
    paths = []
    with progress.task(f"fetching {repository}", sum(file.size or 0 for file in files), "bytes") as advance:
        for file in files:
            bar = _counting_bar(advance)
            path = hf_hub_download(
                repository, file.rfilename, revision=info.sha, etag_timeout=TIMEOUT_S, tqdm_class=bar
            )
            advance((file.size or 0) - bar.counted)
            paths.append(Path(path))
    if gguf is not None:
        return paths[0]
    folder = paths[-1].parent
    if not (folder / ADAPTER_CONFIG).is_file():
        require_complete(folder)
    return folder


def _gguf(repository: str, sizes: dict[PurePosixPath, int], tag: str) -> PurePosixPath | None:
    """The selected GGUF file of a repository; None if it has a model in safetensors."""
    if not tag and any(name.suffix == ".safetensors" for name in sizes):
        return None
    totals = {model: sum(sizes.get(part, 0) for part in parts_of(model)) for model in models_among(sizes)}
    found = one_of(repository, tag, totals)
    if found is None:
        what = f"no GGUF file called {tag}" if tag else "no safetensors and no GGUF files"
        raise ModelUnavailableError(f"{repository} holds {what}.")
    return found


def _counting_bar(advance: Any) -> Any:
    """A progress bar class for the hub library that draws nothing and reports to `advance`."""
    from huggingface_hub.utils import tqdm

    class CountingBar(tqdm):
        counted = 0

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            type(self).counted += int(n or 0)
            advance(int(n or 0))

    return CountingBar
