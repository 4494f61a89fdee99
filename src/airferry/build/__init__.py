"""The near side's work: what a base lacks, wheels for it, Git overlays, and the images themselves.

Modules in here may use `plan`, `buildah`, `bundle` and `registry`; they never ask the user anything and never print.
"""
