#!/bin/bash
# Joins the answers of sqa_eval_batch.sh and scores them.
set -eu
CHUNKS=8
DATA=${DATA:-./playground/data/eval/scienceqa}

merged=.test_llava-13b.$$
for ((index = 0; index < CHUNKS; index++)); do
    cat "./test_llava-13b-chunk$index.jsonl"
done >"$merged"
mv "$merged" test_llava-13b.jsonl

python -m llava.eval.eval_science_qa \
    --base-dir "$DATA" \
    --result-file ./test_llava-13b.jsonl \
    --output-file ./test_llava-13b_output.json \
    --output-result ./test_llava-13b_result.json
