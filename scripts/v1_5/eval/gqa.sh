#!/bin/bash
# GQA test-dev balanced: answer in chunks, then score.
. "$(dirname "$0")/../../lib/eval.sh"
SPLIT=${SPLIT:-llava_gqa_testdev_balanced}

run_chunks "$EVAL/gqa/answers/$SPLIT/$CKPT" llava.eval.model_vqa_loader "${COMMON[@]}" \
    --question-file "$EVAL/gqa/$SPLIT.jsonl" \
    --image-folder "$EVAL/gqa/data/images" \
    --conv-mode "$CONV_MODE" \
    "$@"

python "$SCRIPTS/convert_gqa_for_eval.py" --src "$EVAL/gqa/answers/$SPLIT/$CKPT/merge.jsonl" \
    --dst "$EVAL/gqa/data/testdev_balanced_predictions.json"

if [ -f "$EVAL/gqa/data/testdev_balanced_questions.json" ]; then
    python -m llava.eval.score gqa \
        --question-file "$EVAL/gqa/data/testdev_balanced_questions.json" \
        --result-file "$EVAL/gqa/answers/$SPLIT/$CKPT/merge.jsonl" \
        --score-file "$EVAL/gqa/scores/$CKPT.json"
else
    note "no accuracy: $EVAL/gqa/data/testdev_balanced_questions.json does not exist"
fi
if [ -f "$EVAL/gqa/data/eval/eval.py" ]; then # GQA's own tool
    cd "$EVAL/gqa/data" && python eval/eval.py --tier testdev_balanced
fi
