# Sourced by quickstart.sh and test.sh: makes .venv once and installs what the lock file pins.
# PYTHON chooses the interpreter (default python3); a second call with nothing changed returns at once.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
VENV="$REPOSITORY/.venv"

fail() {
    echo "error: $*" >&2
    exit 1
}

say() { echo "[$(date +%H:%M:%S)] $*"; }

check_python() {
    command -v "$PYTHON" >/dev/null || fail "no $PYTHON here; install Python 3.10 or newer, or set PYTHON=/path/to/python3"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$PYTHON" --version) is too old: Python 3.10 or newer is needed (set PYTHON=/path/to/python3)"
}

check_disk() {
    local free_mb needed_mb=3000
    free_mb=$(df -Pm "$REPOSITORY" | awk 'NR == 2 {print $4}')
    [ "$free_mb" -ge "$needed_mb" ] ||
        fail "$free_mb MB are free on the disk of $REPOSITORY, about $needed_mb are needed; free some space and start again"
}

# A folder of CPU wheels configured for pip holds for uv too, which does not read pip's settings.
wheel_folder() {
    echo "${PIP_FIND_LINKS:-$("$VENV/bin/python" -m pip config get global.find-links 2>/dev/null)}"
}

install_packages() { # $1: extras
    local wanted="$REPOSITORY[$1]" lock="$REPOSITORY/requirements.lock" wheels
    if command -v uv >/dev/null; then
        [ -x "$VENV/bin/python" ] || uv venv --quiet --seed --python "$PYTHON" "$VENV" || return 1
        wheels=$(wheel_folder)
        if [ -n "$wheels" ]; then
            UV_FIND_LINKS="$wheels" uv pip install --python "$VENV/bin/python" -c "$lock" -e "$wanted"
        else
            uv pip install --torch-backend=auto --python "$VENV/bin/python" -c "$lock" -e "$wanted"
        fi
    else
        [ -x "$VENV/bin/pip" ] || "$PYTHON" -m venv "$VENV" || return 1
        "$VENV/bin/python" -m pip install --quiet -c "$lock" -e "$wanted"
    fi
}

explain_failure() { # $1: log
    if grep -qiE "no space left|disk quota" "$1"; then
        fail "the disk is full; free about 3 GB and start again"
    elif grep -qiE "connection|resolve host|name resolution|timed out|network|unreachable|dns error" "$1"; then
        fail "the package registry cannot be reached; check the network, proxy and index settings of pip or uv, and start again"
    fi
    fail "the installation failed; the lines above say why (whole log: $1)"
}

# Without a GPU, DeepSpeed compiles its shared-memory communication at first use; better now than in the first run.
prepare_deepspeed() {
    "$VENV/bin/python" - <<'PYTHON_END' >"$VENV/deepspeed.log" 2>&1 || fail "DeepSpeed could not be prepared: $(tail -n 1 "$VENV/deepspeed.log") (a C++ compiler, g++, is needed; whole log: $VENV/deepspeed.log)"
import torch

if not torch.cuda.is_available():
    from deepspeed.accelerator import get_accelerator

    get_accelerator().create_op_builder("ShareMemCommBuilder").load()
PYTHON_END
}

# Whether some earlier call installed these extras, perhaps among others, and nothing has changed since.
is_installed() { # $1: extras, $2: key
    local stamp extra
    for stamp in "$VENV"/installed-*; do
        [ "$(cat "$stamp" 2>/dev/null)" = "$2" ] || continue
        for extra in ${1//,/ }; do
            case "$stamp-" in *"-$extra-"*) ;; *) continue 2 ;; esac
        done
        return 0
    done
    return 1
}

# ensure_venv EXTRAS: afterwards .venv holds the package with these extras, and is first on PATH.
ensure_venv() {
    local extras=$1 key stamp log
    PYTHON=${PYTHON:-python3}
    export PATH="$VENV/bin:$PATH"
    # Waiting threads that spin slow a shared machine down several times.
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} TOKENIZERS_PARALLELISM=false
    cd "$REPOSITORY" || exit 1
    key=$(cat requirements.lock setup.py pyproject.toml scripts/lib/setup.sh | cksum | cut -d' ' -f1)
    stamp="$VENV/installed-${extras//,/-}"
    is_installed "$extras" "$key" && return
    check_python
    check_disk
    say "Installing into .venv (extras: $extras)..."
    log=$(mktemp)
    install_packages "$extras" >"$log" 2>&1 || {
        tail -n 15 "$log" >&2
        explain_failure "$log"
    }
    rm -f "$log"
    case ",$extras," in *,train,*)
        say "Preparing DeepSpeed (compiles once on a machine without a GPU, about a minute)..."
        prepare_deepspeed
        ;;
    esac
    echo "$key" >"$stamp"
    say "Installed."
}
