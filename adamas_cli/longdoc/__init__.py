"""Documents of any length: read part by part, with the answers merged level by level."""
