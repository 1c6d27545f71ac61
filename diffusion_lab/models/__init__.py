"""Loading Stable Diffusion models."""
