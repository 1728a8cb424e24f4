"""A model that several processes share: started, loaded and ready for timelines."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adamas_cli import models
from adamas_cli.engine.model import Model
from adamas_cli.errors import UsageError
from adamas_cli.machine.threads import threads_for
from adamas_cli.models.configs import read_config
from adamas_cli.models.device import devices_of
from adamas_cli.models.quantization import PACKAGES
from adamas_cli.models.split import Split, require_splittable
from adamas_cli.progress import Progress, Silent

if TYPE_CHECKING:
    from adamas_cli.ranks.group import Ranks


def load_shared(
    files: models.ModelFiles, settings: Mapping[str, Any], gpus: int, progress: Progress
) -> models.LoadedModel:
    """The first rank's share of a model over this many GPUs. settings: of `models.load`.

    Raises UsageError if there are fewer, ModelUnavailableError for a model that cannot be split, and
    RankLostError if a process ends.
    """
    from adamas_cli.ranks.team import Team

    if files.adapter is not None:
        raise UsageError("an adapter is merged into whole weights: leave out `adapter`, or `gpus`.")
    if settings["quantization"] in PACKAGES:
        raise UsageError(f"`quantization` {settings['quantization']} is for one GPU: leave it out, or `gpus`.")
    devices = devices_of(settings["device"], gpus)
    config = read_config(files.directory, trust_remote_code=settings["trust_remote_code"])
    require_splittable(files.name, config, gpus)
    threads = threads_for(settings["threads"], gpus)
    gc.collect()  # a model that nothing uses any more still has its processes
    team = Team(devices)
    asked = {"files": files, "settings": dict(settings) | {"threads": threads}}
    loaded = replace(team.load(load_share, asked, progress=progress), team=team)
    weakref.finalize(loaded.model, team.close)
    return loaded


def load_share(
    ranks: Ranks, files: models.ModelFiles, settings: Mapping[str, Any], progress: Progress | None = None
) -> models.LoadedModel:
    """One rank's share, set up for timelines; all ranks call this at once."""
    device = str(devices_of(settings["device"], ranks.count)[ranks.rank])
    shown = Silent() if progress is None else progress
    loaded = models.load(files, **settings | {"device": device}, split=Split(ranks), progress=shown)
    Model.of(loaded)  # sends a token through it
    return loaded
