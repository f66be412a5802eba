# Sourced by the scripts of the connectors. Here is what all of their recipes share, with LLaVA-1.5's own values;
# each script states its connector, learning rate, batch size and output folder. Variables:
#   SIZE                 7b or 13b
#   CONNECTOR, TOKENS    of the AcFormer scripts     VLORA_DIM      of the VLoRA scripts
#   BASE_MODEL           language model              VISION_TOWER   CLIP model
#   DATA_PATH            training data               IMAGE_FOLDER   its images
#   PRETRAINED           stage-1 file for stage 2    OUTPUT_DIR     where the run is saved
#   DEEPSPEED_CONFIG     ZeRO settings               MASTER_PORT    port of the launcher
SIZE=${SIZE:-7b}

# train_stage1 FLAGS...: the connector on image captions; the language model is frozen.
train_stage1() {
    launch --version plain --tune_mm_mlp_adapter True \
        --data_path "${DATA_PATH:-./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}" \
        --image_folder "${IMAGE_FOLDER:-./playground/data/LLaVA-Pretrain/images}" \
        --save_steps 1000 "$@"
}

# train_stage2 FLAGS...: instruction tuning of connector and language model.
train_stage2() {
    launch --version v1 --image_aspect_ratio pad --group_by_modality_length True \
        --data_path "${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}" \
        --image_folder "${IMAGE_FOLDER:-./playground/data}" \
        --save_steps 1000 "$@"
}

# Flags given later win, so the recipe's come after the shared ones, and the user's after the recipe's.
launch() {
    ${LAUNCHER:-deepspeed --master_port ${MASTER_PORT:-29500}} llava/train/train_mem.py \
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
        --save_total_limit 1 \
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
}
