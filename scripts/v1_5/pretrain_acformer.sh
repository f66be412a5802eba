#!/bin/bash
# AcFormer stage 1: train the connector on image captions; learning rate 5e-4.
# The defaults are the paper's recipe (arXiv 2405.17815) on 8 GPUs, global batch 256; variables as in lib/train.sh.
# Flags given to this script come last and win: bash scripts/v1_5/pretrain_acformer.sh --learning_rate 1e-4
. "$(dirname "${BASH_SOURCE[0]}")/../lib/train.sh"
CONNECTOR=${CONNECTOR:-acformer}
TOKENS=${TOKENS:-145}
train_stage1 \
    --mm_projector_type "$CONNECTOR" \
    --mm_num_visual_tokens "$TOKENS" \
    --learning_rate 5e-4 \
    --per_device_train_batch_size 32 \
    --output_dir "${OUTPUT_DIR:-./checkpoints/llava-v1.5-$SIZE-$CONNECTOR-$TOKENS-pretrain}" \
    "$@"
