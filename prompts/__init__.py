"""The prompt templates of adamas, as Markdown files for string.Template. Installed as adamas_prompts."""
