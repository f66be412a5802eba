#!/bin/bash
# Q-Bench: bash scripts/v1_5/eval/qbench.sh dev|test; the answers of `test` are submitted by hand.
. "$(dirname "$0")/../../lib/eval.sh"
SPLIT=${1:?dev or test}

python -m llava.eval.model_vqa_qbench \
    --model-path "$MODEL" \
    --image-folder "$EVAL/qbench/images_llvisionqa/" \
    --questions-file "$EVAL/qbench/llvisionqa_$SPLIT.json" \
    --answers-file "$EVAL/qbench/llvisionqa_${SPLIT}_answers.jsonl" \
    --conv-mode llava_v1 \
    --lang en \
    "${@:2}"
