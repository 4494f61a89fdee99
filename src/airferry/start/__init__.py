"""The start of a project: `airgap.yaml` for a catalogue that is there, or for a small one that is written with it."""
