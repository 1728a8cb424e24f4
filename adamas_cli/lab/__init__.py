"""Measurements that users make: how fast this machine is, and how good sparse answers are."""
