"""Readers, one for each format, that turn non-text files into text in sections."""
