"""An image's merged root, read from its layers. Runs nothing; imports `oci`, `host` and `errors` alone."""
