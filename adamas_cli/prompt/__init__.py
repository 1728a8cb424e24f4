"""The prompt as token ids: templates, exact tokenization, layout, and the mapping back to lines."""
