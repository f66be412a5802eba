#!/bin/bash
# MME: answers, and the scores of perception and cognition.
. "$(dirname "$0")/../../lib/eval.sh"

python -m llava.eval.model_vqa_loader "${COMMON[@]}" \
    --question-file "$EVAL/MME/llava_mme.jsonl" \
    --image-folder "$EVAL/MME/MME_Benchmark_release_version" \
    --answers-file "$EVAL/MME/answers/$CKPT.jsonl" \
    --conv-mode "$CONV_MODE" \
    "$@"
