"""The operations in plain torch: they run wherever torch does."""
