#!/bin/bash
# The main job on the embedded playground, without GPU, weights or network after the installation: builds images,
# trains a LLaVA in two stages by the real scripts, evaluates it on held-out images, and answers a question.
#   bash scripts/quickstart.sh                        AcFormer, and LLaVA-1.5's MLP as the baseline
#   CONNECTOR=mlp2x_gelu BASELINE= bash scripts/quickstart.sh
#   CONNECTOR=vlora bash scripts/quickstart.sh        images as weights of the language model (or acformer_vlora: both)
# A second run skips what is done; delete checkpoints/playground to start afresh.
set -u
. "$(dirname "$0")/lib/setup.sh"
ensure_venv "train"
started=$SECONDS

CONNECTOR=${CONNECTOR:-acformer}
BASELINE=${BASELINE-mlp2x_gelu} # empty: none
DATA=${DATA:-playground/data/shapes}
RUNS=${RUNS:-checkpoints/playground}
export BASE_MODEL=playground/bases/tiny-llama VISION_TOWER=playground/bases/tiny-clip
export TOKENS=${TOKENS:-17} IMAGE_FOLDER=$DATA
# Two processes of one thread are faster than one of two; DeepSpeed only costs time here.
PROCESSES=${PROCESSES:-$(($(nproc) > 1 ? 2 : 1))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + PROCESSES - 1) / PROCESSES))}
export LAUNCHER="torchrun --standalone --nproc_per_node $PROCESSES" DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG-}
# What fits two CPU cores instead of eight GPUs. The learning rates are those of small models.
SMALL=(--bf16 False --tf32 False --gradient_checkpointing False --report_to none --dataloader_num_workers 0
    --model_max_length 512 --save_strategy no --logging_steps 10)
SMALL_RESAMPLER=(--mm_resampler_depth 2 --mm_resampler_heads 4 --mm_resampler_dim_head 32)
SMALL_GENERATOR=(--vlora_heads 4 --vlora_depth 2 --vlora_rank 8 --vlora_alpha 8 --vlora_type qkvom --skip_layers 1
    --weights_sep False)
export VLORA_DIM=${VLORA_DIM:-128}

quietly() { # LOG COMMAND...: shows ten lines of the progress bar, keeps everything in the log
    local log=$1
    shift
    mkdir -p "$(dirname "$log")"
    "$@" 2>&1 | tee "$log" | python -u scripts/lib/show_progress.py
    [ "${PIPESTATUS[0]}" = 0 ] ||
        fail "this step failed: $* (the end of $log:)
$(tail -n 12 "$log")"
}

# The packed rows of all processes hold about $1 samples of $2 words.
row() {
    local visual=$TOKENS length
    case $CONNECTOR in mlp* | linear) visual=64 ;; vlora) visual=0 ;; esac
    length=$(($1 * ($2 + visual) / PROCESSES))
    echo --packing True --per_device_train_batch_size 1 --packing_length $((length > 512 ? length : 512))
}

train_and_evaluate() { # CONNECTOR
    local connector=$1 pretrained="$RUNS/llava-$1-pretrain" model="$RUNS/llava-$1" recipe=acformer
    local small=("${SMALL[@]}")
    [ "$connector" != vlora ] && small+=("${SMALL_RESAMPLER[@]}")
    case $connector in *vlora) small+=("${SMALL_GENERATOR[@]}") ;; esac
    local stage1_steps=150 stage2=(--learning_rate 1e-3)
    if [ "$connector" = vlora ]; then # the other recipe takes any connector that gives visual tokens
        recipe=vlora
        stage1_steps=600 # it begins to read words late; what else was tried: docs/benchmarks/vlora_playground.md
        small+=(--adam_beta2 0.95)
        stage2=(--learning_rate 5e-4 --mm_projector_lr 1e-3 --B_matrix_lr 1e-3)
    fi
    export CONNECTOR=$connector
    if [ ! -f "$pretrained/mm_projector.bin" ]; then
        say "$connector, stage 1: the connector learns from captions (scripts/v1_5/pretrain_$recipe.sh)"
        DATA_PATH=$DATA/pretrain.json OUTPUT_DIR=$pretrained quietly "$RUNS/logs/$connector-stage1.log" \
            bash "scripts/v1_5/pretrain_$recipe.sh" "${small[@]}" $(row 32 19) --learning_rate 2e-3 \
            --max_steps "${STAGE1_STEPS:-$stage1_steps}"
    fi
    if [ ! -f "$model/model.safetensors" ]; then
        say "$connector, stage 2: connector and language model learn from conversations (scripts/v1_5/finetune_$recipe.sh)"
        DATA_PATH=$DATA/instruct.json OUTPUT_DIR=$model PRETRAINED=$pretrained/mm_projector.bin \
            quietly "$RUNS/logs/$connector-stage2.log" \
            bash "scripts/v1_5/finetune_$recipe.sh" "${small[@]}" $(row 16 190) "${stage2[@]}" \
            --max_steps "${STAGE2_STEPS:-640}"
    fi
    # Both files at once, one thread each.
    local running=() questions process
    for questions in eval_questions eval_questions_blank; do
        answer "$model" "$questions" &
        running+=($!)
    done
    for process in "${running[@]}"; do wait "$process" || exit 1; done
}

answer() { # MODEL QUESTIONS
    local model=$1 questions=$2 log
    log="$RUNS/logs/$CONNECTOR-$questions.log"
    [ -f "$model/$questions.done" ] && return
    say "$CONNECTOR: answering $questions (python -m llava.eval.model_vqa_loader)"
    OMP_NUM_THREADS=1 python -m llava.eval.model_vqa_loader --model-path "$model" --question-file "$DATA/$questions.jsonl" \
        --image-folder "$DATA" --answers-file "$model/$questions.answers.jsonl" --temperature 0 \
        --conv-mode vicuna_v1 --max_new_tokens 8 >"$log" 2>&1 ||
        fail "evaluation failed; the end of $log:
$(tail -n 12 "$log")"
    touch "$model/$questions.done"
}

say "Images and conversations: $DATA"
python -m playground.make_data --out "$DATA" --num-train "${PICTURES:-8000}" --num-eval "${QUESTIONS:-100}" || fail "the playground's data could not be made"
asked=$CONNECTOR
train_and_evaluate "$asked"
results=("$RUNS/llava-$asked")
if [ -n "$BASELINE" ] && [ "$BASELINE" != "$asked" ]; then
    train_and_evaluate "$BASELINE"
    results+=("$RUNS/llava-$BASELINE")
fi

echo
python -m playground.score --data "$DATA" "${results[@]}" || fail "the answers could not be scored"
echo
IFS=$'\t' read -r image question answer < <(python - "$DATA" <<'PYTHON_END'
import json, sys
with open(f"{sys.argv[1]}/eval_questions.jsonl") as file:
    row = json.loads(file.readline())
print(f"{sys.argv[1]}/{row['image']}", row["text"], row["answer"], sep="\t")
PYTHON_END
)
say "One question about $image: $question (right: $answer)"
python -m llava.eval.run_llava --model-path "$RUNS/llava-$asked" --image-file "$image" --query "$question" \
    --temperature 0 --max_new_tokens 16 2>"$RUNS/logs/run_llava.log" ||
    fail "the model could not be asked; see $RUNS/logs/run_llava.log"
echo
say "Done in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s after the installation. Chat with your model:"
echo "  .venv/bin/python -m llava.serve.cli --model-path $RUNS/llava-$asked --image-file $image --device cpu --temperature 0"
echo "or in a browser:"
echo "  MODEL=$RUNS/llava-$asked bash scripts/demo.sh"
