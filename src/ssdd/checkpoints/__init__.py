"""Everything that knows foreign names: the authors' checkpoints, encoders of others; and the embedded weights."""
