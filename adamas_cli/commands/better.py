"""Says once, after the first answer of the default model, which better one this machine could run."""

from __future__ import annotations

from contextlib import suppress

from adamas_cli.models.places import models_directory
from adamas_cli.progress import Progress
from adamas_cli.settings import ModelSettings


def tell_better(model: ModelSettings, progress: Progress, *, quiet: bool) -> None:
    """Nothing where the user has chosen a model, wants no notes, or was told before."""
    told = models_directory() / "recommended.told"
    if model.model is not None or quiet or told.exists():
        return
    from adamas_cli.planning.fitting import best

    better = best()
    if better is None:
        return
    with suppress(OSError):  # then it is said again
        told.parent.mkdir(parents=True, exist_ok=True)
        told.touch()
    progress.note(
        f"this machine could run {better.name}, which is better with long documents: "
        f"`adamas models pull {better.name}`, then `model`. `adamas models recommended` lists others."
    )
