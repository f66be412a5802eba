"""Training: arguments, data, model set-up, the Trainer, checkpoints."""
