#!/bin/bash
# MM-Vet: answers, and the file that the evaluation server takes.
. "$(dirname "$0")/../../lib/eval.sh"

python -m llava.eval.model_vqa "${COMMON[@]}" \
    --question-file "$EVAL/mm-vet/llava-mm-vet.jsonl" \
    --image-folder "$EVAL/mm-vet/images" \
    --answers-file "$EVAL/mm-vet/answers/$CKPT.jsonl" \
    --conv-mode "$CONV_MODE" \
    "$@"

python "$SCRIPTS/convert_mmvet_for_eval.py" \
    --src "$EVAL/mm-vet/answers/$CKPT.jsonl" \
    --dst "$EVAL/mm-vet/results/$CKPT.json"
