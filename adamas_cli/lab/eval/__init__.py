"""What `adamas eval` measures: how far sparse attention is from full attention."""
