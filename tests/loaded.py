"""A loaded model without files, for the engine and the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from adamas_cli.models import ModelFiles


@dataclass
class Loaded:
    """The part of a LoadedModel that they read."""

    model: nn.Module
    files: ModelFiles = field(default_factory=lambda: ModelFiles("tiny", Path(), "a" * 64))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    quantization: str = "none"
    in_bytes: bool = False
    stop_ids: tuple[int, ...] = ()
