#!/bin/bash
# ScienceQA test: answer with the option's letter, then score.
. "$(dirname "$0")/../../lib/eval.sh"

python -m llava.eval.model_vqa_science "${COMMON[@]}" \
    --question-file "$EVAL/scienceqa/llava_test_CQM-A.json" \
    --image-folder "$EVAL/scienceqa/images/test" \
    --answers-file "$EVAL/scienceqa/answers/$CKPT.jsonl" \
    --single-pred-prompt \
    --conv-mode "$CONV_MODE" \
    "$@"

python -m llava.eval.eval_science_qa \
    --base-dir "$EVAL/scienceqa" \
    --result-file "$EVAL/scienceqa/answers/$CKPT.jsonl" \
    --output-file "$EVAL/scienceqa/answers/${CKPT}_output.jsonl" \
    --output-result "$EVAL/scienceqa/answers/${CKPT}_result.json" \
    --score-file "$EVAL/scienceqa/scores/$CKPT.json"
