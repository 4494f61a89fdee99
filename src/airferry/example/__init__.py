"""The built-in example: a small catalogue of Nemotron's shape whose steps really compute something.

Data only. `catalogue/` is the repository of steps, `tokenizer/` the tree that becomes a Git overlay.
"""
