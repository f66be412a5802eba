"""Doubles, tiny models and runners that several tests share."""
