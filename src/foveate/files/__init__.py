"""Files that appear whole or not at all, YAML, and what must stand beside every number."""
