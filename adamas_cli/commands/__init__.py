"""The commands of adamas: one module each, that parses its arguments, calls the engine and renders."""
