"""Serving: the controller, workers, and the web demo."""
