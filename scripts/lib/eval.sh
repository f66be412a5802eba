# What the evaluation scripts share. Sourced; settings come from the environment, flags given to a script go to its
# answer generator and win: MODEL=checkpoints/llava-v1.5-7b-acformer-145 bash scripts/v1_5/eval/pope.sh --batch-size 16
set -eu
MODEL=${MODEL:-liuhaotian/llava-v1.5-13b}
# Name of the answers files, and of the row in the report: the model's, of which checkpoint-N says nothing alone.
NAME=$(basename "$MODEL")
case $NAME in checkpoint-*) NAME=$(basename "$(dirname "$MODEL")")_$NAME ;; esac
CKPT=${CKPT:-$NAME}
EVAL=${EVAL:-./playground/data/eval} # where the benchmarks lie, see docs/evaluation.md
EVAL=${EVAL/#\~\//$HOME/}
CONV_MODE=${CONV_MODE:-vicuna_v1}
SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
COMMON=(--model-path "$MODEL" --temperature 0 --record-run)

# Works through a question file in as many chunks as CUDA_VISIBLE_DEVICES names devices, one process for each, and joins
# the answers: run_chunks ANSWERS_FOLDER GENERATOR FLAG... leaves them in ANSWERS_FOLDER/merge.jsonl.
run_chunks() {
    local folder=$1 generator=$2 index failed=0 pids=() devices merged
    shift 2
    IFS=',' read -ra devices <<<"${CUDA_VISIBLE_DEVICES-0}"
    [ ${#devices[@]} != 0 ] || devices=("") # set and empty: no device is to be used
    local chunks=${#devices[@]}
    # Processes in the background do not hear Ctrl-C: without this they would go on after the script.
    trap 'kill "${pids[@]}" 2>/dev/null; exit 130' INT TERM HUP
    for ((index = 0; index < chunks; index++)); do
        CUDA_VISIBLE_DEVICES=${devices[$index]} python -m "$generator" "$@" --num-chunks "$chunks" \
            --chunk-idx "$index" --answers-file "$folder/${chunks}_$index.jsonl" &
        pids+=($!)
    done
    for index in "${!pids[@]}"; do
        wait "${pids[$index]}" || {
            echo "chunk $index of $chunks failed, see above; run the script again with --resume to go on" >&2
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
