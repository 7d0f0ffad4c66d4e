"""One page that reports a whole run of the recipe."""
