#!/bin/bash
# Create an environment for lmms-eval on top of one that has this package: bash tests/lmms_eval/setup.sh [FOLDER]
# FOLDER (default .venv-lmms) holds only what lmms-eval adds, about 250 MB; torch and the rest come from PYTHON's
# environment (default .venv), which is not changed. The exit status is 3 if the package registry cannot be reached.
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
. "$here/../support/layered_venv.sh"
make_layer "${1:-$repository/.venv-lmms}" "$here/requirements.txt"
echo "$repository" >"$added/repository.pth"
