"""Pure tensor mathematics of the methods: no models, no batches, no hooks."""
