"""The registry transport: the only importer of oras. Pull, push, referrers and credentials over one client.

Nothing here knows bundles, plans or the terminal.
"""
