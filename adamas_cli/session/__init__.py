"""Documents and questions in front of a model: the base of `ask`, `summarize`, parts and `chat`."""
