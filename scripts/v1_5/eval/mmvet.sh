#!/bin/bash
# MM-Vet: answers, and the file that the evaluation server takes; with JUDGE_BASE_URL also their grades.
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

# Graded by the evaluation server, or here by any OpenAI-compatible judge (not comparable with the server's figures).
if [ -n "${JUDGE_BASE_URL:-}" ]; then
    python -m llava.eval.score mmvet \
        --annotation-file "$EVAL/mm-vet/mm-vet.json" \
        --result-file "$EVAL/mm-vet/results/$CKPT.json" \
        --output "$EVAL/mm-vet/grades/$CKPT.jsonl" \
        --score-file "$EVAL/mm-vet/scores/$CKPT.json" \
        --judge-base-url "$JUDGE_BASE_URL" ${JUDGE_MODEL:+--judge-model "$JUDGE_MODEL"}
fi
