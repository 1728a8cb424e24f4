"""Prefilled documents on disk: what a model has read once is there for every later question."""
