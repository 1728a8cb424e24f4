"""The measurements of `adamas bench`."""
