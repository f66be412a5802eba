# Shared by the evaluation scripts, which source it. Settings are environment variables; flags of a script are passed to
# its answer generator and take precedence: MODEL=checkpoints/my-model bash scripts/v1_5/eval/pope.sh --batch-size 16
set -eu
MODEL=${MODEL:-liuhaotian/llava-v1.5-13b}
# The model's name is the name of the answers files and of the row in the report; checkpoint-N alone is ambiguous.
NAME=$(basename "$MODEL")
case $NAME in checkpoint-*) NAME=$(basename "$(dirname "$MODEL")")_$NAME ;; esac
CKPT=${CKPT:-$NAME}
EVAL=${EVAL:-./playground/data/eval} # folder of the benchmarks, see docs/evaluation.md
EVAL=${EVAL/#\~\//$HOME/}
CONV_MODE=${CONV_MODE:-vicuna_v1}
SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
COMMON=(--model-path "$MODEL" --temperature 0 --record-run)

# run_chunks ANSWERS_FOLDER GENERATOR FLAG... answers a question file in chunks, one process per device of
# CUDA_VISIBLE_DEVICES, and joins the answers in ANSWERS_FOLDER/merge.jsonl.
run_chunks() {
    local folder=$1 generator=$2 index failed=0 pids=() devices merged
    shift 2
    IFS=',' read -ra devices <<<"${CUDA_VISIBLE_DEVICES-0}"
    [ ${#devices[@]} != 0 ] || devices=("") # set and empty: no device
    local chunks=${#devices[@]}
    # Background processes ignore Ctrl-C: without this trap they would continue after the script.
    trap 'kill "${pids[@]}" 2>/dev/null; exit 130' INT TERM HUP
    for ((index = 0; index < chunks; index++)); do
        CUDA_VISIBLE_DEVICES=${devices[$index]} python -m "$generator" "$@" --num-chunks "$chunks" \
            --chunk-idx "$index" --answers-file "$folder/${chunks}_$index.jsonl" &
        pids+=($!)
    done
    for index in "${!pids[@]}"; do
        wait "${pids[$index]}" || {
            echo "chunk $index of $chunks failed, see above; run the script again with --resume to continue" >&2
            failed=1
        }
    done
    trap - INT TERM HUP
    [ "$failed" = 0 ] || exit 1
    merged="$folder/.merge.$$"
    for ((index = 0; index < chunks; index++)); do
        cat "$folder/${chunks}_$index.jsonl"
    done >"$merged"
    mv "$merged" "$folder/merge.jsonl"
}

note() {
    echo "note: $*" >&2
}
