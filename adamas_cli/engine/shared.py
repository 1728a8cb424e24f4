"""A model on one device, or split over several processes with a GPU each: loaded and ready for timelines."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from adamas_cli import models
from adamas_cli.engine.model import Model
from adamas_cli.errors import UsageError
from adamas_cli.heap import exclude_imported
from adamas_cli.machine.threads import threads_for
from adamas_cli.models.configs import read_config
from adamas_cli.models.device import devices_of
from adamas_cli.models.prequantized import stored_bytes
from adamas_cli.models.quantization import PACKAGES
from adamas_cli.models.split import Split, require_splittable
from adamas_cli.progress import Progress, Silent

if TYPE_CHECKING:
    from adamas_cli.ranks.group import Ranks
    from adamas_cli.settings import ModelSettings


def load_chosen(files: models.ModelFiles, chosen: ModelSettings, progress: Progress) -> models.LoadedModel:
    """The model of `files` as a user wants it loaded. Over several GPUs, it is this process's share.

    Raises what `models.load` does, UsageError if there are fewer GPUs, ModelUnavailableError for a model that
    cannot be split, and RankLostError if a process ends.
    """
    exclude_imported()
    if chosen.gpus == 1:
        return models.load(files, **chosen.loading, progress=progress)
    devices = devices_of(chosen.device, chosen.gpus)
    require_shareable(files, chosen)
    threads = threads_for(chosen.threads, chosen.gpus)
    asked = {"files": files, "settings": chosen.loading | {"threads": threads}, "devices": devices}
    return share(devices, load_share, asked, progress)


def require_shareable(files: models.ModelFiles, chosen: ModelSettings) -> None:
    """Raises UsageError for settings that suit one device only, ModelUnavailableError for a model that cannot
    be split.
    """
    if files.adapter is not None:
        raise UsageError("an adapter is merged into whole weights: leave out `adapter`, or `gpus`.")
    if chosen.quantization in PACKAGES or stored_bytes(files.directory) is not None:
        raise UsageError("weights that a library quantizes are for one GPU: leave out `gpus`.")
    config = read_config(files.directory, trust_remote_code=chosen.trust_remote_code)
    require_splittable(files.name, config, chosen.gpus)


def share(
    devices: Sequence[torch.device],
    function: Callable[..., models.LoadedModel],
    arguments: Mapping[str, Any],
    progress: Progress,
) -> models.LoadedModel:
    """This process's share of a model, led from here: processes are started for the other devices, and all
    call this function with their view of the ranks and these arguments. It also gets the progress here.
    """
    from adamas_cli.ranks.team import Team

    team = Team(list(devices))
    loaded = replace(team.load(function, arguments, progress=progress), team=team)
    weakref.finalize(loaded.model, team.close)
    return loaded


def load_share(
    ranks: Ranks,
    files: models.ModelFiles,
    settings: Mapping[str, Any],
    devices: Sequence[torch.device],
    progress: Progress | None = None,
) -> models.LoadedModel:
    """One rank's share of the model of `files`, set up for timelines; all ranks call this at once."""
    shown = Silent() if progress is None else progress
    placed = {**settings, "device": str(devices[ranks.rank])}
    loaded = models.load(files, **placed, split=Split(ranks), progress=shown)
    Model.of(loaded)  # sends a token through it
    return loaded
