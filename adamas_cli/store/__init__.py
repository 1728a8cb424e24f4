"""Prefilled documents on disk: read once, reused for every later question."""
