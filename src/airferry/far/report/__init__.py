"""The report of a bundle that a security officer can sign."""
