"""Models on the Hugging Face hub, kept in the hub library's own cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.folder import missing
from adamas_cli.progress import Progress

TIMEOUT_S = 8.0
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
UNWANTED = ("*/*", "*consolidated*", "*.onnx*", "training_args*")


def cached_snapshot(repository: str) -> Path | None:
    """The folder of a complete model in the hub library's cache, or None; uses no network.

    Raises ModelUnavailableError if `repository` cannot be a name on the hub.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True, allow_patterns=list(WANTED)))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelUnavailableError(f"{repository} is no model name: {error}") from error
    return folder if missing(folder) is None else None


def download_snapshot(repository: str, progress: Progress) -> Path:
    """The folder of the newest version of a model, after fetching the files that are not yet in the cache.

    Raises ModelUnavailableError if there is no such model, it is gated, holds no safetensors, or the hub
    cannot be reached.
    """
    from huggingface_hub import errors

    try:
        return _download(repository, progress)
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


def _download(repository: str, progress: Progress) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils import filter_repo_objects

    info = HfApi().model_info(repository, files_metadata=True, timeout=TIMEOUT_S)
    files = list(
        filter_repo_objects(
            info.siblings or [],
            allow_patterns=list(WANTED),
            ignore_patterns=list(UNWANTED),
            key=lambda file: file.rfilename,
        )
    )
    _require_safetensors(repository, [file.rfilename for file in info.siblings or []])
    folder = Path()
    with progress.task(f"fetching {repository}", sum(file.size or 0 for file in files), "bytes") as advance:
        for file in files:
            bar = _counting_bar(advance)
            path = hf_hub_download(
                repository, file.rfilename, revision=info.sha, etag_timeout=TIMEOUT_S, tqdm_class=bar
            )
            advance((file.size or 0) - bar.counted)
            folder = Path(path).parent
    return folder


def _require_safetensors(repository: str, names: list[str]) -> None:
    if any(name.endswith(".safetensors") for name in names):
        return
    ggufs = [name for name in names if name.endswith(".gguf")]
    what = "no safetensors"
    if ggufs:
        what = f"GGUF files, such as {ggufs[0]}: fetch one and pass its path with `model`"
    raise ModelUnavailableError(f"{repository} holds {what}.")


def _counting_bar(advance: Any) -> Any:
    """A class of progress bars, as the hub library takes it, that draw nothing and report to `advance`."""
    from huggingface_hub.utils import tqdm

    class CountingBar(tqdm):
        counted = 0

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            type(self).counted += int(n or 0)
            advance(int(n or 0))

    return CountingBar
