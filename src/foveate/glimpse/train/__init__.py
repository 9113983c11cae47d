"""Training of the glimpse module on a frozen stock model (extra: `foveate[train]`)."""
