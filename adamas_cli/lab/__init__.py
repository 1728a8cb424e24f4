"""Measurements for users: the speed of this machine, and the quality of sparse answers."""
