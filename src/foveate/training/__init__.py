"""Training a glimpse module, and a model on pruned inputs."""
