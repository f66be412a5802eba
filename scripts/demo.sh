#!/bin/bash
# The web demo: controller, worker and web server on this machine; Ctrl-C stops all three.
#   bash scripts/demo.sh                                   the model of scripts/quickstart.sh
#   MODEL=/path/to/llava-v1.5-7b DEVICE=cuda bash scripts/demo.sh
#   MODEL=/path/to/lora MODEL_BASE=/path/to/base PORT=8080 bash scripts/demo.sh
# PORT, CONTROLLER_PORT, WORKER_PORT: default 7860, 21001, 21002, or any free one. LLAVA_LOGDIR: logs and chats.
set -u
started_in=$PWD
. "$(dirname "$0")/lib/setup.sh"

absolute() { # a path as the caller means it: from where the script was started, if it is there
    if [ -n "$1" ] && [ -e "$started_in/$1" ]; then echo "$started_in/$1"; else echo "$1"; fi
}

default_model=checkpoints/playground/llava-acformer
MODEL_PATH=$(absolute "${MODEL:-}")
MODEL_PATH=${MODEL_PATH:-$REPOSITORY/$default_model}
[ -n "${MODEL:-}" ] || [ -f "$MODEL_PATH/config.json" ] ||
    fail "there is no model in $default_model yet; run 'bash scripts/quickstart.sh' first (it trains one), or name another: MODEL=/path/to/model bash scripts/demo.sh"

# The quickstart's model is local; another one, or its vision tower, may have to be downloaded.
[ -z "${MODEL:-}" ] || export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-0}
ensure_venv "serve"
if [ -z "${DEVICE:-}" ]; then
    DEVICE=cpu
    command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1 && DEVICE=cuda
fi
umask 077 # chats and images are private
export LLAVA_LOGDIR=${LLAVA_LOGDIR:-$REPOSITORY/runs/demo}
export NO_PROXY=127.0.0.1,localhost${NO_PROXY:+,$NO_PROXY} no_proxy=127.0.0.1,localhost${no_proxy:+,$no_proxy}
exec python scripts/lib/run_demo.py --model "$MODEL_PATH" --model-base "$(absolute "${MODEL_BASE:-}")" --device "$DEVICE" \
    ${PORT:+--port "$PORT"} ${CONTROLLER_PORT:+--controller-port "$CONTROLLER_PORT"} ${WORKER_PORT:+--worker-port "$WORKER_PORT"}
