"""Latent generation: a DiT trained by flow matching on tokenized latents, sampled and measured."""
