"""The commands of adamas: one module each, which parses arguments, calls the engine and renders."""
