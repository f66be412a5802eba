#!/bin/bash
# All benchmarks that need a GPU, on one NVIDIA GPU, without downloads; see the head of gpu.py.
#
#   bash scripts/bench/gpu.sh                  # every part
#   bash scripts/bench/gpu.sh steps serving    # some
#   bash scripts/bench/gpu.sh --rehearse       # every part at a toy size on the CPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
exec "${PYTHON:-python3}" scripts/bench/gpu.py "$@"
