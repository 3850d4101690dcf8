#!/bin/sh
# Check style and types with what `sh tools/setup.sh test` installed.
set -eu
cd "$(dirname "$0")/.."
python=${SPPNET_VENV:-.venv}/bin/python
"$python" -m ruff check detector proposals tests tools
"$python" -m ruff format --check detector proposals tests tools
"$python" -m mypy
