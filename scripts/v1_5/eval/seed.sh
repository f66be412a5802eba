#!/bin/bash
# SEED-Bench: answer in chunks, score, and write the file for the leaderboard.
. "$(dirname "$0")/../../lib/eval.sh"

run_chunks "$EVAL/seed_bench/answers/$CKPT" llava.eval.model_vqa_loader "${COMMON[@]}" \
    --question-file "$EVAL/seed_bench/llava-seed-bench.jsonl" \
    --image-folder "$EVAL/seed_bench" \
    --conv-mode "$CONV_MODE" \
    "$@"

python "$SCRIPTS/convert_seed_for_submission.py" \
    --annotation-file "$EVAL/seed_bench/SEED-Bench.json" \
    --result-file "$EVAL/seed_bench/answers/$CKPT/merge.jsonl" \
    --result-upload-file "$EVAL/seed_bench/answers_upload/$CKPT.jsonl" \
    --score-file "$EVAL/seed_bench/scores/$CKPT.json"
