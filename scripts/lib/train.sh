# Sourced by the scripts of the connectors. Here is what all of their recipes share, with LLaVA-1.5's own values;
# each script states its connector, learning rate, batch size and output folder. Variables:
#   SIZE                 7b or 13b
#   CONNECTOR, TOKENS    of the AcFormer scripts     VLORA_DIM      of the VLoRA scripts
#   BASE_MODEL           language model              VISION_TOWER   CLIP model
#   DATA_PATH            training data               IMAGE_FOLDER   its images
#   PRETRAINED           stage-1 file for stage 2    OUTPUT_DIR     where the run is saved
#   LAUNCHER             what starts the processes   MASTER_PORT    port of DeepSpeed's launcher, the default
#   DEEPSPEED_CONFIG     ZeRO settings               RECOMPUTE      True or False: recompute activations
#   PACKING              True or False: several samples in a row of stage 2
SIZE=${SIZE:-7b}
PACKING=${PACKING:-True}
# Lengths vary from batch to batch: without it the allocator's blocks of other sizes fill the memory.
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}}

# train_stage1 FLAGS...: the connector on image captions; the language model is frozen.
train_stage1() {
    DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG-./scripts/zero2_clip.json}
    launch --version plain --tune_mm_mlp_adapter True \
        --gradient_checkpointing "${RECOMPUTE:-$(stage1_recompute)}" \
        --data_path "${DATA_PATH:-./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}" \
        --image_folder "${IMAGE_FOLDER:-./playground/data/LLaVA-Pretrain/images}" \
        "$@"
}

# Visual tokens of an image.
visual_tokens() {
    case "${CONNECTOR:-vlora}" in
        linear | mlp* | identity) echo 576 ;; # whatever TOKENS says
        vlora) echo 0 ;;
        *) echo "$TOKENS" ;;
    esac
}

# Activations of a frozen 7b model take 4 MiB a token: 36 GiB for 32 captions of 257 visual tokens, which fit beside the
# weights on 80 GB. Recomputing them instead makes a step up to 1.46 times as long. VLoRA's 96 captions do not fit.
stage1_recompute() {
    local tokens
    tokens=$(visual_tokens)
    [ "$SIZE" = 7b ] && [ "$tokens" -gt 0 ] && [ "$tokens" -le 257 ] && echo False || echo True
}

# train_stage2 FLAGS...: instruction tuning of connector and language model.
train_stage2() {
    local zero=zero3_clip # on 8 GPUs of 80 GB, 7b fits without cutting the weights, too, and need not gather them
    [ "$SIZE" = 7b ] && zero=zero2_clip
    DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG-./scripts/$zero.json}
    launch --version v1 --image_aspect_ratio pad --group_by_modality_length True \
        --gradient_checkpointing "${RECOMPUTE:-True}" \
        --packing "$PACKING" \
        --data_path "${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}" \
        --image_folder "${IMAGE_FOLDER:-./playground/data}" \
        "$@"
}

# The batch size of 16 samples, LLaVA-1.5's: with packing as many rows of 2048 positions as they fill when their text has
# 250 tokens on average. The log says how many samples a step really has.
stage2_batch() {
    [ "$PACKING" = True ] && echo $(((($(visual_tokens) + 250) * 16 + 1024) / 2048)) || echo 16
}

# Flags given later win, so the recipe's come after the shared ones, and the user's after the recipe's.
launch() {
    local zero=()
    [ -n "$DEEPSPEED_CONFIG" ] && zero=(--deepspeed "$DEEPSPEED_CONFIG")
    ${LAUNCHER:-deepspeed --master_port ${MASTER_PORT:-29500}} llava/train/train_mem.py \
        ${zero[@]+"${zero[@]}"} \
        --model_name_or_path "${BASE_MODEL:-lmsys/vicuna-$SIZE-v1.5}" \
        --vision_tower "${VISION_TOWER:-openai/clip-vit-large-patch14-336}" \
        --mm_vision_select_layer -2 \
        --mm_use_im_start_end False \
        --mm_use_im_patch_token False \
        --bf16 True \
        --num_train_epochs 1 \
        --per_device_eval_batch_size 4 \
        --gradient_accumulation_steps 1 \
        --evaluation_strategy "no" \
        --save_strategy "steps" \
        --save_steps 1000 \
        --save_total_limit 1 \
        --optim adamw_torch_fused \
        --weight_decay 0. \
        --warmup_ratio 0.03 \
        --lr_scheduler_type "cosine" \
        --logging_steps 10 \
        --logging_nan_inf_filter False \
        --tf32 True \
        --chunked_loss True \
        --accelerator_config '{"non_blocking": true}' \
        --model_max_length 2048 \
        --dataloader_num_workers 4 \
        --lazy_preprocess True \
        --report_to wandb \
        "$@"
}
