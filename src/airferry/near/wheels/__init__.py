"""Wheels: resolved, fetched or built, kept by their SHA-256."""
