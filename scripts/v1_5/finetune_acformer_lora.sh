#!/bin/bash
# AcFormer stage 2 with LoRA: adapters on the language model; all weights of the connector train.
# The defaults are the paper's recipe (arXiv 2405.17815) with LLaVA-1.5's LoRA settings on 8 GPUs, global batch 128;
# variables as in lib/train.sh.
# Flags given to this script come last and win: bash scripts/v1_5/finetune_acformer_lora.sh --lora_r 64
. "$(dirname "${BASH_SOURCE[0]}")/../lib/train.sh"
CONNECTOR=${CONNECTOR:-acformer}
TOKENS=${TOKENS:-145}
RUN=./checkpoints/llava-v1.5-$SIZE-$CONNECTOR-$TOKENS
train_stage2 \
    --lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 \
    --mm_projector_type "$CONNECTOR" \
    --mm_num_visual_tokens "$TOKENS" \
    --pretrain_mm_mlp_adapter "${PRETRAINED:-$RUN-pretrain/mm_projector.bin}" \
    --learning_rate 2e-4 \
    --per_device_train_batch_size "$(stage2_batch)" \
    --output_dir "${OUTPUT_DIR:-$RUN-lora}" \
    "$@"
