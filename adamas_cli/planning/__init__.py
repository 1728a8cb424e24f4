"""How a model will run, decided before its weights are loaded."""
