"""The KV cache of one timeline: an object for each layer of a model, and the memory they grow in."""
