"""What a question about documents would take, known before a weight is loaded."""
