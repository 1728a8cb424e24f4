"""A model whose positions are scaled beyond the context that it was trained for, on the user's request.

The model gets a folder of its own: links to its files, and a config with the scaling. So everything that
reads a config sees it: plans, the loaded model, and the names of kept documents.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adamas_cli.errors import UsageError
from adamas_cli.files import appearing, make_folder
from adamas_cli.models.folder import CONFIG
from adamas_cli.models.places import models_directory

KINDS = ("yarn", "linear")  # that need nothing but a factor
PLAIN = "default"  # transformers' name of unscaled positions


@dataclass(frozen=True)
class Scaling:
    """A kind of scaling, by transformers' names, and the factor by which the context grows."""

    kind: str
    factor: float

    @classmethod
    def of(cls, text: str) -> Scaling:
        """From text such as `yarn:4`. Raises UsageError."""
        kind, _, factor = text.partition(":")
        number = 0.0
        with suppress(ValueError):
            number = float(factor)
        if kind not in KINDS or not 1 < number < math.inf:
            raise UsageError(
                f"`rope_scaling` is {' or '.join(KINDS)} and a factor above 1, such as yarn:4, not {text}"
            )
        return cls(kind, number)


def scaled(directory: Path, fingerprint: str, name: str, text: str) -> tuple[Path, str]:
    """The folder and the fingerprint of a model with its positions scaled as the user asked, such as
    `yarn:4`. directory, fingerprint, name: the model's own. Raises UsageError for another text, and for a
    model whose positions are scaled already or have no context to scale.
    """
    scaling = Scaling.of(text)
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    scale(config.get("text_config", config), scaling, name)
    both = hashlib.sha256(f"{fingerprint} {scaling}".encode()).hexdigest()
    folder = models_directory() / "scaled" / both[:16]
    make_folder(folder)
    for file in directory.iterdir():
        if file.name != CONFIG:
            with suppress(FileExistsError):
                (folder / file.name).symlink_to(file.absolute())
    with appearing(folder / CONFIG) as stream:
        stream.write(json.dumps(config).encode())
    return folder, both


def scale(config: dict[str, Any], scaling: Scaling, name: str) -> None:
    """Changes a text model's config. Raises UsageError if its positions are scaled already, differ by layer,
    or have no context. name: of the model.
    """
    field = "rope_parameters" if isinstance(config.get("rope_parameters"), dict) else "rope_scaling"
    before = config.get(field) or {}
    kind = before.get("rope_type", before.get("type", PLAIN))
    context = config.get("max_position_embeddings")
    by_layer = any(isinstance(value, dict) for value in before.values())
    if kind != PLAIN or by_layer or not isinstance(context, int):
        told = "rotates them by kind of layer" if by_layer else f"has {kind} positions of its own"
        raise UsageError(f"`rope_scaling` scales plain positions, and {name} {told}: leave it out")
    config[field] = {
        **before,
        "rope_type": scaling.kind,
        "factor": scaling.factor,
        "original_max_position_embeddings": context,
    }
    if scaling.kind != "yarn":  # whose factor says how far it reaches
        config["max_position_embeddings"] = int(context * scaling.factor)
