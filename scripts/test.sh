#!/bin/bash
# Sets up .venv, checks style and import boundaries, and runs the tests, two files at a time (TEST_JOBS).
# Arguments go to pytest: bash scripts/test.sh -k anchors
set -u
. "$(dirname "$0")/lib/setup.sh"
ensure_venv "train,quant,serve,eval,patches,test"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python -m ruff check . && python -m ruff format --check . || fail "ruff has findings; 'ruff check --fix . && ruff format .' fixes most"
lint-imports --no-logo || fail "an import crosses a boundary; [tool.importlinter] in pyproject.toml lists them"
# In the order of their names the long files (e2e) start early, and the many short ones fill the end.
exec python -m pytest -n "${TEST_JOBS:-2}" --dist loadfile --no-loadscope-reorder "$@"
