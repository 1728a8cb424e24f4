"""A conversation over documents: the lines that `adamas chat` handles."""
