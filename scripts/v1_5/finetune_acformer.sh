#!/bin/bash
# AcFormer stage 2: instruction tuning of connector and language model.
# The defaults are the paper's recipe (arXiv 2405.17815) on 8 GPUs, global batch 128; variables as in lib/train.sh.
# Flags given to this script come last and win: bash scripts/v1_5/finetune_acformer.sh --learning_rate 1e-4
. "$(dirname "${BASH_SOURCE[0]}")/../lib/train.sh"
CONNECTOR=${CONNECTOR:-acformer}
TOKENS=${TOKENS:-145}
RUN=./checkpoints/llava-v1.5-$SIZE-$CONNECTOR-$TOKENS
train_stage2 \
    --mm_projector_type "$CONNECTOR" \
    --mm_num_visual_tokens "$TOKENS" \
    --pretrain_mm_mlp_adapter "${PRETRAINED:-$RUN-pretrain/mm_projector.bin}" \
    --learning_rate 2e-5 \
    --per_device_train_batch_size "$(stage2_batch)" \
    --output_dir "${OUTPUT_DIR:-$RUN}" \
    "$@"
