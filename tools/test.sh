#!/bin/sh
# Install sppnet with its test dependencies into .venv and run the tests: `sh tools/test.sh [PYTEST OPTIONS]`.
set -eu
cd "$(dirname "$0")/.."
sh tools/setup.sh test
exec "${SPPNET_VENV:-.venv}/bin/python" -m pytest -q -rs "$@"
