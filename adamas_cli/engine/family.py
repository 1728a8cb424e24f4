"""Which models have layers of the plainest kind, whose parts have kernels of their own."""

from __future__ import annotations

# Models whose layers are: RMSNorm, attention with rotated halves, residual, RMSNorm, SiLU-gated MLP,
# residual.
FAMILY = ("llama", "mistral", "qwen2", "qwen3")
