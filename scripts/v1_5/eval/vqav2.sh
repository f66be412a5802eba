#!/bin/bash
# VQAv2 test-dev: answer in chunks, and write the file for the evaluation server. A split with public answers is scored:
# SPLIT=llava_vqav2_mscoco_val2014 IMAGES=val2014 bash scripts/v1_5/eval/vqav2.sh
. "$(dirname "$0")/../../lib/eval.sh"
SPLIT=${SPLIT:-llava_vqav2_mscoco_test-dev2015}
IMAGES=${IMAGES:-test2015}
ANNOTATIONS="$EVAL/vqav2/v2_mscoco_${SPLIT#llava_vqav2_mscoco_}_annotations.json"

run_chunks "$EVAL/vqav2/answers/$SPLIT/$CKPT" llava.eval.model_vqa_loader "${COMMON[@]}" \
    --question-file "$EVAL/vqav2/$SPLIT.jsonl" \
    --image-folder "$EVAL/vqav2/$IMAGES" \
    --conv-mode "$CONV_MODE" \
    "$@"

python "$SCRIPTS/convert_vqav2_for_submission.py" --dir "$EVAL/vqav2" --split "$SPLIT" --ckpt "$CKPT"

if [ -f "$ANNOTATIONS" ]; then
    python -m llava.eval.score vqa \
        --annotation-file "$ANNOTATIONS" \
        --result-file "$EVAL/vqav2/answers/$SPLIT/$CKPT/merge.jsonl" \
        --score-file "$EVAL/vqav2/scores/$CKPT.json"
else
    note "no accuracy: $ANNOTATIONS does not exist (the answers of the test splits are not public)"
fi
