"""Everything that knows foreign names: the authors' checkpoints, KL-VAE encoders; and the embedded weights."""
