#!/bin/sh
# Make a virtual environment in this folder and install sppnet into it, once: `sh tools/setup.sh [EXTRA]`.
# PYTHON names the interpreter (default python3), SPPNET_VENV the folder (default .venv). Nothing happens if that
# environment has what setup.cfg asks for and neither moved.
set -eu
cd "$(dirname "$0")/.."
extra=${1:-}
venv=${SPPNET_VENV:-.venv}
python=${PYTHON:-python3}
stamp=$venv/sppnet-installed${extra:+-$extra}

if [ -e "$stamp" ] && [ "$stamp" -nt setup.cfg ] && [ "$stamp" -nt pyproject.toml ] && [ "$(cat "$stamp")" = "$PWD" ]
then
    exit 0
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "sppnet needs Python 3.10 or newer: name one, for example PYTHON=python3.12 sh $0" >&2
    exit 1
}
"$python" -m venv "$venv" || {
    echo "could not make $venv: is the venv module there (Debian, Ubuntu: apt install python3-venv)?" >&2
    exit 1
}
echo "Installing sppnet and its dependencies, PyTorch among them, into $venv: the first time this takes minutes."
"$venv/bin/python" -m pip install --disable-pip-version-check --editable ".${extra:+[$extra]}"
echo "$PWD" >"$stamp"
