#!/bin/bash
# Q-Bench in Chinese: bash scripts/v1_5/eval/qbench_zh.sh dev|test; the answers of `test` are submitted by hand.
. "$(dirname "$0")/../../lib/eval.sh"
SPLIT=${1:?dev or test}
case $SPLIT in
dev) QUESTIONS=质衡-问答-验证集 ;;
test) QUESTIONS=质衡-问答-测试集 ;;
*) echo "error: '$SPLIT' is neither dev nor test" >&2 && exit 2 ;;
esac

python -m llava.eval.model_vqa_qbench \
    --model-path "$MODEL" \
    --image-folder "$EVAL/qbench/images_llvisionqa/" \
    --questions-file "$EVAL/qbench/$QUESTIONS.json" \
    --answers-file "$EVAL/qbench/llvisionqa_zh_${SPLIT}_answers.jsonl" \
    --conv-mode llava_v1 \
    --lang zh \
    "${@:2}"
