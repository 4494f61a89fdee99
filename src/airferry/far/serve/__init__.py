"""A bundle served as a read-only registry."""
