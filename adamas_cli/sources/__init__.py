"""The origins of an answer: the passages that it attended to, and its quotations."""
