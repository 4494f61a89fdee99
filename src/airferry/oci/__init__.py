"""OCI objects: documents, digests, references, layouts, layers and copies between sources and sinks.

Knows no registry client, no Buildah and no configuration.
"""
