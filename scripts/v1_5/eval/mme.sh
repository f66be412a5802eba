#!/bin/bash
# MME: answer, then score perception and cognition.
. "$(dirname "$0")/../../lib/eval.sh"

python -m llava.eval.model_vqa_loader "${COMMON[@]}" \
    --question-file "$EVAL/MME/llava_mme.jsonl" \
    --image-folder "$EVAL/MME/MME_Benchmark_release_version" \
    --answers-file "$EVAL/MME/answers/$CKPT.jsonl" \
    --conv-mode "$CONV_MODE" \
    "$@"

python -m llava.eval.score mme \
    --data-dir "$EVAL/MME/MME_Benchmark_release_version" \
    --result-file "$EVAL/MME/answers/$CKPT.jsonl" \
    --results-dir "$EVAL/MME/eval_tool/answers/$CKPT" \
    --score-file "$EVAL/MME/scores/$CKPT.json"

if [ -f "$EVAL/MME/eval_tool/calculation.py" ]; then # MME's own tool
    cd "$EVAL/MME/eval_tool" && python calculation.py --results_dir "answers/$CKPT"
fi
