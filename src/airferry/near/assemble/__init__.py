"""Images: recipes, and the two ways to make them (directly, or in a container)."""
