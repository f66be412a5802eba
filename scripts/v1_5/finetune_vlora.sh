#!/bin/bash
# VLoRA stage 2: instruction tuning of generator and language model.
# The defaults are the paper's recipe (arXiv 2405.20339) on 8 GPUs, global batch 128; variables as in lib/train.sh.
# Flags given to this script come last and win: bash scripts/v1_5/finetune_vlora.sh --learning_rate 1e-5
. "$(dirname "${BASH_SOURCE[0]}")/../lib/train.sh"
# Width of the generator, the same as in stage 1: give both scripts the same (see pretrain_vlora.sh).
VLORA_DIM=${VLORA_DIM:-512}
RUN=./checkpoints/llava-v1.5-$SIZE-vlora-$VLORA_DIM
train_stage2 \
    --mm_projector_type vlora \
    --vlora_dim "$VLORA_DIM" \
    --vlora_depth 8 \
    --vlora_rank 64 \
    --vlora_alpha 64 \
    --vlora_type qkvom \
    --weights_sep True \
    --skip_layers 4 \
    --pretrain_mm_mlp_adapter "${PRETRAINED:-$RUN-pretrain/mm_projector.bin}" \
    --learning_rate 2e-5 \
    --per_device_train_batch_size "$(stage2_batch)" \
    --output_dir "${OUTPUT_DIR:-$RUN}" \
    "$@"
