"""Rehearsals: every step is run in its image, without a network."""
