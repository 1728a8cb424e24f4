"""What `adamas bench` measures."""
