#!/bin/bash
# LLaVA-Bench (in the wild): answer, let a judge review the answers, and print scores relative to GPT-4's answers.
# The judge is any OpenAI-compatible server: OPENAI_API_KEY=... or JUDGE_BASE_URL=http://localhost:8000/v1 JUDGE_MODEL=name
. "$(dirname "$0")/../../lib/eval.sh"
BENCH="$EVAL/llava-bench-in-the-wild"
JUDGE=(${JUDGE_BASE_URL:+--judge-base-url "$JUDGE_BASE_URL"} ${JUDGE_MODEL:+--judge-model "$JUDGE_MODEL"})

python -m llava.eval.model_vqa "${COMMON[@]}" \
    --question-file "$BENCH/questions.jsonl" \
    --image-folder "$BENCH/images" \
    --answers-file "$BENCH/answers/$CKPT.jsonl" \
    --conv-mode "$CONV_MODE" \
    "$@"

mkdir -p "$BENCH/reviews"
python -m llava.eval.eval_gpt_review_bench \
    --question "$BENCH/questions.jsonl" \
    --context "$BENCH/context.jsonl" \
    --rule "${RULE:-$SCRIPTS/../llava/eval/table/rule.json}" \
    --answer-list "$BENCH/answers_gpt4.jsonl" "$BENCH/answers/$CKPT.jsonl" \
    --output "$BENCH/reviews/$CKPT.jsonl" "${JUDGE[@]}"

python -m llava.eval.summarize_gpt_review -f "$BENCH/reviews/$CKPT.jsonl" --score-file "$BENCH/scores/$CKPT.json"
