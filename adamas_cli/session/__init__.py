"""Documents and questions for a model: the base of `ask`, `summarize`, parts and `chat`."""
