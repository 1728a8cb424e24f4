"""The measurements of `adamas eval`: how far sparse attention is from full attention."""
