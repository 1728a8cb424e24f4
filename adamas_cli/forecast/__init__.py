"""The memory and time of a question about documents, known before a weight is loaded."""
