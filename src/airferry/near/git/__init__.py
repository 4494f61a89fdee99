"""Git repositories on the near side: commits in a cache, exported as plain trees."""
