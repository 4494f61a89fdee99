"""The bundle: its manifest, the receipt of a load, sealing and verification. No network and no Buildah in here."""
