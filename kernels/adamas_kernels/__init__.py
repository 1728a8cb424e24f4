"""Adamas sparse attention: codes, estimates, selection and exact attention over the selected tokens.

Stands on its own: imports torch, and neither transformers nor adamas_cli.
"""
