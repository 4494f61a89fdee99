"""Base images: fetched, verified, kept by layer, or composed from Debian packages."""
