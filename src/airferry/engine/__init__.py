"""The only driver of buildah, podman and mmdebstrap: preflight, bootstrap and one typed function a verb.

Knows nothing of plans, bundles or registries' protocols; everything above it sees image IDs, files and typed errors.
"""
