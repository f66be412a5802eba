#!/bin/bash
# MMBench dev in Chinese: answer with the option's letter, write the table for the evaluation server, and score.
. "$(dirname "$0")/../../lib/eval.sh"
SPLIT=${SPLIT:-mmbench_dev_cn_20231003}

python -m llava.eval.model_vqa_mmbench "${COMMON[@]}" \
    --question-file "$EVAL/mmbench_cn/$SPLIT.tsv" \
    --answers-file "$EVAL/mmbench_cn/answers/$SPLIT/$CKPT.jsonl" \
    --lang cn \
    --single-pred-prompt \
    --conv-mode "$CONV_MODE" \
    "$@"

python "$SCRIPTS/convert_mmbench_for_submission.py" \
    --annotation-file "$EVAL/mmbench_cn/$SPLIT.tsv" \
    --result-dir "$EVAL/mmbench_cn/answers/$SPLIT" \
    --upload-dir "$EVAL/mmbench_cn/answers_upload/$SPLIT" \
    --experiment "$CKPT"

python -m llava.eval.score mmbench \
    --annotation-file "$EVAL/mmbench_cn/$SPLIT.tsv" \
    --result-file "$EVAL/mmbench_cn/answers/$SPLIT/$CKPT.jsonl" \
    --benchmark MMB-CN \
    --score-file "$EVAL/mmbench_cn/scores/$CKPT.json"
