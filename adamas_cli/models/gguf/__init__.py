"""GGUF files, read in place: their keys become a config, their tensors a model's weights."""
