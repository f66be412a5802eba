#!/bin/bash
# VizWiz test: answer, and write the file for the evaluation server. A split with public answers, SPLIT=val, is scored.
. "$(dirname "$0")/../../lib/eval.sh"
SPLIT=${SPLIT:-test}

python -m llava.eval.model_vqa_loader "${COMMON[@]}" \
    --question-file "$EVAL/vizwiz/llava_$SPLIT.jsonl" \
    --image-folder "$EVAL/vizwiz/$SPLIT" \
    --answers-file "$EVAL/vizwiz/answers/$CKPT.jsonl" \
    --conv-mode "$CONV_MODE" \
    "$@"

python "$SCRIPTS/convert_vizwiz_for_submission.py" \
    --annotation-file "$EVAL/vizwiz/llava_$SPLIT.jsonl" \
    --result-file "$EVAL/vizwiz/answers/$CKPT.jsonl" \
    --result-upload-file "$EVAL/vizwiz/answers_upload/$CKPT.json"

if grep -qs '"answers"' "$EVAL/vizwiz/$SPLIT.json"; then
    python -m llava.eval.score vqa \
        --annotation-file "$EVAL/vizwiz/$SPLIT.json" \
        --question-file "$EVAL/vizwiz/llava_$SPLIT.jsonl" \
        --result-file "$EVAL/vizwiz/answers/$CKPT.jsonl" \
        --score-file "$EVAL/vizwiz/scores/$CKPT.json"
else
    note "no accuracy: $EVAL/vizwiz/$SPLIT.json has no answers (those of the test split are not public)"
fi
