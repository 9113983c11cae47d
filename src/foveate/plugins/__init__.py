"""foveate inside other programs."""
