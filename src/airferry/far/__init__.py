"""The far side: a bundle becomes a loaded registry. Trusts nothing that it reads."""
