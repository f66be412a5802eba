"""Continuous batching: requests share the forward passes of one model."""
