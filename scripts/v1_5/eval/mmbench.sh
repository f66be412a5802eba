#!/bin/bash
# MMBench dev: answer with the option's letter, write the table for the evaluation server, and score.
. "$(dirname "$0")/../../lib/eval.sh"
SPLIT=${SPLIT:-mmbench_dev_20230712}

python -m llava.eval.model_vqa_mmbench "${COMMON[@]}" \
    --question-file "$EVAL/mmbench/$SPLIT.tsv" \
    --answers-file "$EVAL/mmbench/answers/$SPLIT/$CKPT.jsonl" \
    --single-pred-prompt \
    --conv-mode "$CONV_MODE" \
    "$@"

python "$SCRIPTS/convert_mmbench_for_submission.py" \
    --annotation-file "$EVAL/mmbench/$SPLIT.tsv" \
    --result-dir "$EVAL/mmbench/answers/$SPLIT" \
    --upload-dir "$EVAL/mmbench/answers_upload/$SPLIT" \
    --experiment "$CKPT"

python -m llava.eval.score mmbench \
    --annotation-file "$EVAL/mmbench/$SPLIT.tsv" \
    --result-file "$EVAL/mmbench/answers/$SPLIT/$CKPT.jsonl" \
    --benchmark MMB \
    --score-file "$EVAL/mmbench/scores/$CKPT.json"
