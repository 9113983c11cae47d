"""Load a model, prepare inputs, prune, generate: the one use case that everything a user runs stands on."""
