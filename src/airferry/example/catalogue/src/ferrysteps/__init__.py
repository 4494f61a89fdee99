"""A catalogue of three steps."""
