"""Benchmarks that a language model judges, through an OpenAI-compatible server."""
