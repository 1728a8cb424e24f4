"""From a name to a loaded model: aliases, download, settings, loading.

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from adamas_cli.models.load import LoadedModel, load
from adamas_cli.models.resolve import ModelFiles, resolve

__all__ = ["LoadedModel", "ModelFiles", "load", "resolve"]
