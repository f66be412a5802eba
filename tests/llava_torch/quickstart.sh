#!/bin/bash
# AcFormer in the LLaVA of February 2024, from its unchanged code to answers: bash tests/llava_torch/quickstart.sh [FOLDER]
# Copies its code to FOLDER (default runs/llava_torch), adds the connectors, trains both stages on the playground with
# its train.py, answers the held-out questions with its loader, scores them, and removes the connectors again. Flags are
# those of scripts/quickstart.sh, for two CPU cores: about 15 minutes.
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
. scripts/lib/setup.sh
ensure_venv "train,patches"
bash tests/llava_torch/setup.sh
run=$(realpath -m "${1:-runs/llava_torch}")
python=$PWD/.venv-llava-torch/bin/python
data=$PWD/playground/data/shapes
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}

python -m playground.make_data --out "$data" --num-train 8000 --num-eval 100
rm -rf "$run" && mkdir -p "$run/code"
cp -r .venv-llava-torch/pristine/llava "$run/code/llava"
python -m patches.graft "$run/code" --apply

train() { # OUTPUT FLAGS...
    PYTHONPATH=$run/code "$python" "$run/code/llava/train/train.py" --output_dir "$run/$1" \
        --model_name_or_path "$PWD/playground/bases/tiny-llama" --vision_tower "$PWD/playground/bases/tiny-clip" \
        --mm_projector_type acformer --mm_num_visual_tokens "${TOKENS:-17}" --mm_resampler_depth 2 \
        --mm_resampler_heads 4 --mm_resampler_dim_head 32 --mm_vision_select_layer -2 --mm_use_im_start_end False \
        --mm_use_im_patch_token False --image_folder "$data" --model_max_length 512 --logging_steps 10 \
        --save_strategy no --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine \
        --dataloader_num_workers 0 --report_to none "${@:2}"
}
say "Stage 1, by its train.py"
train llava-acformer-pretrain --version plain --tune_mm_mlp_adapter True --data_path "$data/pretrain.json" \
    --per_device_train_batch_size 32 --learning_rate 2e-3 --max_steps "${STAGE1_STEPS:-150}"
say "Stage 2"
train llava-acformer --version v1 --image_aspect_ratio pad --group_by_modality_length True \
    --data_path "$data/instruct.json" --per_device_train_batch_size 16 --learning_rate 1e-3 \
    --max_steps "${STAGE2_STEPS:-700}" --pretrain_mm_mlp_adapter "$run/llava-acformer-pretrain/mm_projector.bin"

for questions in eval_questions eval_questions_blank; do
    say "Answering $questions, by its model_vqa_loader.py"
    cat >"$run/jobs.json" <<JSON
[{"do": "program", "file": "$run/code/llava/eval/model_vqa_loader.py", "out": "$run/loader.txt", "arguments": [
  "--model-path", "$run/llava-acformer", "--question-file", "$data/$questions.jsonl", "--image-folder", "$data",
  "--answers-file", "$run/llava-acformer/$questions.answers.jsonl", "--conv-mode", "vicuna_v1", "--temperature", "0",
  "--max_new_tokens", "8"]}]
JSON
    PYTHONPATH=$run/code "$python" tests/llava_torch/jobs.py "$run/jobs.json"
done
python -m playground.score --data "$data" "$run/llava-acformer"

python -m patches.graft "$run/code" --revert
find "$run/code" -name __pycache__ -prune -exec rm -rf {} +
diff -r .venv-llava-torch/pristine/llava "$run/code/llava" && say "The code is as it was."
