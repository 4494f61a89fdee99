"""The lock files of catalogues: `uv.lock`, pip's and others, read into one model."""
