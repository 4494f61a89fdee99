"""The rules of the checklist, by what they look at."""
