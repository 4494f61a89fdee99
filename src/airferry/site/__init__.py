"""The far side: bundles are loaded into a registry, tags move last, receipts say what is held. Trusts nothing.

Modules in here may use `bundle` and `registry`; they never write into a bundle and never print.
"""
