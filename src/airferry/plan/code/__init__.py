"""What step code does: imports, commands, and what it fetches or installs at start. Read, never run."""
