"""The parts of a copy besides its engine: what it did, and blobs whose presence is doubtful."""
