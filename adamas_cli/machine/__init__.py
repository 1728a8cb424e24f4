"""Facts about this machine, found without torch."""
