"""Encoders: networks that turn pictures or texts into numbers. Loaded once, shared by all metrics."""
