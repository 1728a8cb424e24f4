"""A note after the first answer of the default model: a better model that this machine can run."""

from __future__ import annotations

from contextlib import suppress

from adamas_cli.models.places import models_directory
from adamas_cli.progress import Progress
from adamas_cli.settings import ModelSettings


def tell_better(model: ModelSettings, progress: Progress, *, quiet: bool) -> None:
    """Do nothing if the user has chosen a model, wants no notes, or has seen the note."""
    told = models_directory() / "recommended.told"
    if model.model is not None or quiet or told.exists():
        return
    from adamas_cli.planning.fitting import best

    better = best()
    if better is None:
        return
    with suppress(OSError):  # the note is then shown again
        told.parent.mkdir(parents=True, exist_ok=True)
        told.touch()
    progress.note(
        f"this machine can run {better.name}, which is better with long documents: "
        f"`adamas models pull {better.name}`, then `model`. `adamas models recommended` lists others."
    )
