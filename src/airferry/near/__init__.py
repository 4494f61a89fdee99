"""The near side: a plan becomes a bundle. Imports nothing of `far` or `jobs`."""
