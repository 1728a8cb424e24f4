"""The prompt as token ids: templates, exact tokenization, layout, and the way back to a line."""
