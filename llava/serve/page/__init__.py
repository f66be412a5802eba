"""The page of the web demo. Never imports torch."""
