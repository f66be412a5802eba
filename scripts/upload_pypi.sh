#!/bin/bash
# Build the package under its name on PyPI (llava-torch) and upload it; needs the `build` extra and PyPI credentials.
set -e
cd "$(dirname "$0")/.."
trap 'sed -i "s/name = \"llava-torch\"/name = \"llava\"/" pyproject.toml' EXIT
rm -rf dist
sed -i 's/name = "llava"/name = "llava-torch"/' pyproject.toml
python -m build
python -m twine upload dist/*
