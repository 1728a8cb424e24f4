"""One model over several processes, each with a device: their sums, and the calls that all of them make."""
