#!/bin/bash
# ScienceQA on eight GPUs, one chunk each; sqa_eval_gather.sh joins and scores the answers. Flags of this script are
# passed to the answer generator and take precedence.
set -eu
CHUNKS=8
MODEL=${MODEL:-liuhaotian/llava-lcs558k-scienceqa-vicuna-13b-v1.3}
DATA=${DATA:-./playground/data/eval/scienceqa}
QUESTIONS=${QUESTIONS:-$DATA/llava_test_QCM-LEA.json}

pids=()
# Background processes ignore Ctrl-C: without this trap they would continue after the script.
trap 'kill "${pids[@]}" 2>/dev/null; exit 130' INT TERM HUP
for ((index = 0; index < CHUNKS; index++)); do
    CUDA_VISIBLE_DEVICES=$index python -m llava.eval.model_vqa_science \
        --model-path "$MODEL" \
        --question-file "$QUESTIONS" \
        --image-folder "$DATA/images/test" \
        --answers-file "./test_llava-13b-chunk$index.jsonl" \
        --num-chunks "$CHUNKS" \
        --chunk-idx "$index" \
        --conv-mode llava_v1 \
        "$@" &
    pids+=($!)
done
failed=0
for index in "${!pids[@]}"; do
    wait "${pids[$index]}" || {
        echo "chunk $index of $CHUNKS failed, see above; run the script again with --resume to continue" >&2
        failed=1
    }
done
exit "$failed"
