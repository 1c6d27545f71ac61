"""Prompts and noise to images, in batches."""
