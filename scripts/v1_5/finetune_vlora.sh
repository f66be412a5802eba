#!/bin/bash
# VLoRA stage 2: instruction tuning of generator and language model.
# Flags given to this script come last and win: bash scripts/v1_5/finetune_vlora.sh --learning_rate 1e-5
# Settings by environment variable; the defaults are the paper's recipe (arXiv 2405.20339) on 8 GPUs, global batch 128.
# SIZE=13b takes the larger language model.
SIZE=${SIZE:-7b}
# Width of the generator, which must be that of stage 1: give both scripts the same (see pretrain_vlora.sh).
VLORA_DIM=${VLORA_DIM:-512}
BASE_MODEL=${BASE_MODEL:-lmsys/vicuna-$SIZE-v1.5}
VISION_TOWER=${VISION_TOWER:-openai/clip-vit-large-patch14-336}
DATA_PATH=${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}
IMAGE_FOLDER=${IMAGE_FOLDER:-./playground/data}
PRETRAINED=${PRETRAINED:-./checkpoints/llava-v1.5-$SIZE-vlora-$VLORA_DIM-pretrain/mm_projector.bin}
OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-v1.5-$SIZE-vlora-$VLORA_DIM}
DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG:-./scripts/zero2.json}
deepspeed --master_port "${MASTER_PORT:-29500}" llava/train/train_mem.py \
    --deepspeed "$DEEPSPEED_CONFIG" \
    --model_name_or_path "$BASE_MODEL" \
    --version v1 \
    --data_path "$DATA_PATH" \
    --image_folder "$IMAGE_FOLDER" \
    --vision_tower "$VISION_TOWER" \
    --pretrain_mm_mlp_adapter "$PRETRAINED" \
    --mm_projector_type vlora \
    --vlora_dim "$VLORA_DIM" \
    --vlora_depth 8 \
    --vlora_rank 64 \
    --vlora_alpha 64 \
    --vlora_type qkvom \
    --weights_sep True \
    --skip_layers 4 \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --bf16 True \
    --output_dir "$OUTPUT_DIR" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 16 \
    --per_device_eval_batch_size 4 \
    --gradient_accumulation_steps 1 \
    --evaluation_strategy "no" \
    --save_strategy "steps" \
    --save_steps 50000 \
    --save_total_limit 1 \
    --learning_rate 2e-5 \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type "cosine" \
    --logging_steps 1 \
    --tf32 True \
    --model_max_length 2048 \
    --gradient_checkpointing True \
    --dataloader_num_workers 4 \
    --lazy_preprocess True \
    --report_to wandb \
    "$@"
