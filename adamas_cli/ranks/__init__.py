"""One model over several processes, each with a device of its own: their sums, and calls made by all of them."""
