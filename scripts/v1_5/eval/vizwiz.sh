#!/bin/bash
# VizWiz test: answers, and the file that the evaluation server takes.
. "$(dirname "$0")/../../lib/eval.sh"

python -m llava.eval.model_vqa_loader "${COMMON[@]}" \
    --question-file "$EVAL/vizwiz/llava_test.jsonl" \
    --image-folder "$EVAL/vizwiz/test" \
    --answers-file "$EVAL/vizwiz/answers/$CKPT.jsonl" \
    --conv-mode "$CONV_MODE" \
    "$@"

python "$SCRIPTS/convert_vizwiz_for_submission.py" \
    --annotation-file "$EVAL/vizwiz/llava_test.jsonl" \
    --result-file "$EVAL/vizwiz/answers/$CKPT.jsonl" \
    --result-upload-file "$EVAL/vizwiz/answers_upload/$CKPT.json"
