"""Ways to take a step of an answer: compiled on a CPU, captured on a GPU, else by the model's forward."""
