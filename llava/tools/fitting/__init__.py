"""What a training run needs: memory, arithmetic and time, computed before it starts."""
