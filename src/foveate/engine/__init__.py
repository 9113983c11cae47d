"""The transformers runtime: hooks, cache, sessions, masks. Knows no method by name."""
