"""Memory-efficient attention: torch's fused attention replaces xformers."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # run by path

from llava.train.train import leave, train

if __name__ == "__main__":
    train(attn_implementation="sdpa")
    leave()
