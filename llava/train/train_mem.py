"""Training with FlashAttention-2 where it is installed, else with torch's own fused attention."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # run by path

from llava.train.attention import fastest_attention
from llava.train.train import leave, train

if __name__ == "__main__":
    train(attn_implementation=fastest_attention())
    leave()
