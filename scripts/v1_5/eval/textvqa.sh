#!/bin/bash
# TextVQA val: answer questions that list OCR tokens, as for LLaVA-1.5, then score.
. "$(dirname "$0")/../../lib/eval.sh"

python -m llava.eval.model_vqa_loader "${COMMON[@]}" \
    --question-file "$EVAL/textvqa/llava_textvqa_val_v051_ocr.jsonl" \
    --image-folder "$EVAL/textvqa/train_images" \
    --answers-file "$EVAL/textvqa/answers/$CKPT.jsonl" \
    --conv-mode "$CONV_MODE" \
    "$@"

python -m llava.eval.eval_textvqa \
    --annotation-file "$EVAL/textvqa/TextVQA_0.5.1_val.json" \
    --result-file "$EVAL/textvqa/answers/$CKPT.jsonl" \
    --score-file "$EVAL/textvqa/scores/$CKPT.json"
