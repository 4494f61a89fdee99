"""Locking: what moves is resolved to digests, commits and hashes."""
