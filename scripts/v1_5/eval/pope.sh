#!/bin/bash
# POPE: answer, then score the three categories.
. "$(dirname "$0")/../../lib/eval.sh"

python -m llava.eval.model_vqa_loader "${COMMON[@]}" \
    --question-file "$EVAL/pope/llava_pope_test.jsonl" \
    --image-folder "$EVAL/pope/val2014" \
    --answers-file "$EVAL/pope/answers/$CKPT.jsonl" \
    --conv-mode "$CONV_MODE" \
    "$@"

python -m llava.eval.eval_pope \
    --annotation-dir "$EVAL/pope/coco" \
    --question-file "$EVAL/pope/llava_pope_test.jsonl" \
    --result-file "$EVAL/pope/answers/$CKPT.jsonl" \
    --score-file "$EVAL/pope/scores/$CKPT.json"
