#!/bin/bash
# Create an environment for the LLaVA of February 2024 (PyPI: llava-torch): bash tests/llava_torch/setup.sh [FOLDER]
# FOLDER (default .venv-llava-torch) holds transformers 4.37 and what goes with it, about 120 MB, and the package's
# unchanged code in FOLDER/pristine. torch and the rest come from PYTHON's environment (default .venv), which is not
# changed. The exit status is 3 if the package registry cannot be reached.
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
. "$here/../support/layered_venv.sh"
folder=${1:-$repository/.venv-llava-torch}
make_layer "$folder" "$here/requirements.txt"
[ -d "$folder/pristine" ] && exit 0
pip_install "$folder" --require-hashes --target "$folder/unpacking" -r "$here/code.txt"
mv "$folder/unpacking" "$folder/pristine"
