"""Documents and questions in front of a model: what `ask`, `summarize`, parts and `chat` have in common."""
