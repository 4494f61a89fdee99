"""The parts of a trial of a registry: kinds of manifests, depths of names. Each leaves as little as it can."""
