"""The plan: what a catalogue and an `airgap.yaml` mean, before anything is fetched or built.

Pure once files are read: no network, no container, no clock, nothing written except by the `write_*` functions.
"""
