#!/bin/bash
# MM-Vet: answer, and write the file for the evaluation server; with JUDGE_BASE_URL, also grade the answers.
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

# Any OpenAI-compatible judge can grade; its figures are not comparable with those of the evaluation server.
if [ -n "${JUDGE_BASE_URL:-}" ]; then
    python -m llava.eval.score mmvet \
        --annotation-file "$EVAL/mm-vet/mm-vet.json" \
        --result-file "$EVAL/mm-vet/results/$CKPT.json" \
        --output "$EVAL/mm-vet/grades/$CKPT.jsonl" \
        --score-file "$EVAL/mm-vet/scores/$CKPT.json" \
        --judge-base-url "$JUDGE_BASE_URL" ${JUDGE_MODEL:+--judge-model "$JUDGE_MODEL"}
fi
