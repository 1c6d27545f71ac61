"""Encoders: networks that compute embeddings of images or texts. Loaded once, shared by all metrics."""
