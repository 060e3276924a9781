"""Training: a typed config, the stages, one loop, exact checkpoints."""
