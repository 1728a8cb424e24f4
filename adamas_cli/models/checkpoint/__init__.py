"""Safetensors whose weights come quantized: read tensor by tensor into blocks."""
