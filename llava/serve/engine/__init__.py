"""Continuous batching of one model: many requests share every forward. Knows nothing of HTTP."""
