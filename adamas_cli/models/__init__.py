"""From a name to a loaded model: aliases, download, dequantized weights, loading."""
