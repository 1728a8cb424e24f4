"""How a model will run, decided before a weight is loaded."""
