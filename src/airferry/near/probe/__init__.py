"""What a base image holds: read from its files, or by running its Python."""
