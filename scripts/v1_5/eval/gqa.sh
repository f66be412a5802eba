#!/bin/bash
# GQA test-dev balanced: answers in chunks, and their accuracy.
. "$(dirname "$0")/../../lib/eval.sh"
SPLIT=${SPLIT:-llava_gqa_testdev_balanced}

run_chunks "$EVAL/gqa/answers/$SPLIT/$CKPT" llava.eval.model_vqa_loader "${COMMON[@]}" \
    --question-file "$EVAL/gqa/$SPLIT.jsonl" \
    --image-folder "$EVAL/gqa/data/images" \
    --conv-mode "$CONV_MODE" \
    "$@"

python "$SCRIPTS/convert_gqa_for_eval.py" --src "$EVAL/gqa/answers/$SPLIT/$CKPT/merge.jsonl" \
    --dst "$EVAL/gqa/data/testdev_balanced_predictions.json"
