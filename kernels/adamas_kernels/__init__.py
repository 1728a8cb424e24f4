"""Adamas sparse attention: codes, estimates, selection and exact attention over the selected tokens.

Standalone: imports torch, but neither transformers nor adamas_cli.
"""
