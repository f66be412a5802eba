#!/bin/bash
# Create an environment for lmms-eval on top of one that has this package: bash tests/lmms_eval/setup.sh [FOLDER]
# FOLDER (default .venv-lmms) holds only what lmms-eval adds, about 250 MB; torch and the rest come from PYTHON's
# environment (default .venv), which is not changed. The exit status is 3 if the package registry cannot be reached.
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
folder=${1:-$repository/.venv-lmms}
python=${PYTHON:-$repository/.venv/bin/python}
[ -x "$python" ] || { echo "error: no $python; run scripts/test.sh once, or set PYTHON" >&2; exit 1; }

key=$(cat "$here/requirements.txt" "$here/setup.sh" | cksum | cut -d' ' -f1)
key="$key $("$python" -c 'import sys; print(sys.prefix)')"
[ "$(cat "$folder/made-of" 2>/dev/null)" = "$key" ] && exit 0

rm -rf "$folder"
"$python" -m venv --without-pip "$folder"
added=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$added/base.pth"
echo "$repository" >>"$added/base.pth"

log=$folder/install.log
if ! "$folder/bin/python" -m pip install --no-input --retries 1 --timeout 30 --no-compile --no-deps \
    -r "$here/requirements.txt" >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "error: the installation failed (whole log: $log)" >&2
    grep -qiE "connection|name resolution|timed out|unreachable" "$log" && exit 3
    exit 1
fi
echo "$key" >"$folder/made-of"
