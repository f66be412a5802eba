#!/bin/bash
# VQAv2 test-dev: answers in chunks, and the file that the evaluation server takes.
. "$(dirname "$0")/../../lib/eval.sh"
SPLIT=${SPLIT:-llava_vqav2_mscoco_test-dev2015}

run_chunks "$EVAL/vqav2/answers/$SPLIT/$CKPT" llava.eval.model_vqa_loader "${COMMON[@]}" \
    --question-file "$EVAL/vqav2/$SPLIT.jsonl" \
    --image-folder "$EVAL/vqav2/test2015" \
    --conv-mode "$CONV_MODE" \
    "$@"

python "$SCRIPTS/convert_vqav2_for_submission.py" --dir "$EVAL/vqav2" --split "$SPLIT" --ckpt "$CKPT"
