"""Where an answer came from: the passages that it attended to, and the quotations that it gives."""
