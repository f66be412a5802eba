"""Benchmarks in the formats of the published ones, made from held-out scenes."""
