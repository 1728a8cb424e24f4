"""A conversation over documents: what `adamas chat` does with a line."""
