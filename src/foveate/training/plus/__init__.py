"""GlimpsePrune+: reinforcement-learning fine-tuning of the whole model on pruned inputs (arXiv 2508.01548, 3.4).

Needs the `train` extra.
"""
