#!/bin/bash
# VLoRA stage 1: train the perceptual weights generator on image captions; the language model is frozen.
# The defaults are the paper's recipe (arXiv 2405.20339) on 8 GPUs, global batch 768; variables as in lib/train.sh.
# The paper trains on 30 M pairs of CapsFusion-120M; the default here is LLaVA-1.5's pre-training data.
# Flags given to this script come last and win: bash scripts/v1_5/pretrain_vlora.sh --learning_rate 1e-4
. "$(dirname "${BASH_SOURCE[0]}")/../lib/train.sh"
# Width of the generator. The published scripts say 1024 in stage 1 and 512 in stage 2, so that stage 2 cannot load the
# file of stage 1. 512 is the program's default, has 0.85 G parameters instead of 2.03 G (7b), and is used in both.
VLORA_DIM=${VLORA_DIM:-512}
train_stage1 \
    --mm_projector_type vlora \
    --vlora_dim "$VLORA_DIM" \
    --vlora_depth 8 \
    --vlora_rank 64 \
    --vlora_alpha 64 \
    --vlora_type qkvom \
    --weights_sep True \
    --skip_layers 4 \
    --learning_rate 5e-5 \
    --per_device_train_batch_size 96 \
    --output_dir "${OUTPUT_DIR:-./checkpoints/llava-v1.5-$SIZE-vlora-$VLORA_DIM-pretrain}" \
    "$@"
