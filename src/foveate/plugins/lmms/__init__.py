"""foveate as a model of lmms-eval."""
