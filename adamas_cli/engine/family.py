"""Which models have the plainest layers, whose parts have kernels of their own."""

from __future__ import annotations

# Models with these layers: RMSNorm, attention with rotated halves, residual, RMSNorm, SiLU-gated MLP,
# residual.
FAMILY = ("llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3", "qwen3_vl_text")
