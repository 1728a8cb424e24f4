"""GGUF files, read where they lie: their keys become a config, their tensors a model's weights."""
