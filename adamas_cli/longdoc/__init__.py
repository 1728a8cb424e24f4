"""Documents of any length: read part by part, and the answers merged level by level."""
