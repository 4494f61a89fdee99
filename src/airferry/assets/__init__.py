"""Models and data: manifests, recording, packing, and verification of what was staged."""
