"""Training of the two tiny base models: a CLIP vision tower and a LLaMA."""
