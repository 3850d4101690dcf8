#!/bin/sh
# Test what needs a contrib build of OpenCV, in an environment of its own: `sh tools/contrib.sh [PYTEST OPTIONS]`.
# Two OpenCV wheels must not be installed side by side, so this environment gets all that setup.cfg asks for but
# opencv-python, and opencv-contrib-python-headless in its place. PYTHON names the interpreter (default python3),
# SPPNET_CONTRIB_VENV the folder (default .venv-contrib).
set -eu
cd "$(dirname "$0")/.."
venv=${SPPNET_CONTRIB_VENV:-.venv-contrib}
stamp=$venv/sppnet-installed

if ! { [ -e "$stamp" ] && [ "$stamp" -nt setup.cfg ] && [ "$(cat "$stamp")" = "$PWD" ]; }
then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" - >"$venv/requirements.txt" <<'END'
import configparser

setup = configparser.ConfigParser()
setup.read("setup.cfg")
wanted = setup["options"]["install_requires"].split("\n")
wanted += [line for line in setup["options.extras_require"]["test"].split("\n") if line.startswith(("pytest", "hypo"))]
print("\n".join(line for line in wanted if not line.startswith(("opencv-python", "#"))))
print("opencv-contrib-python-headless>=4.8")
END
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet -r "$venv/requirements.txt"
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --editable .
    echo "$PWD" >"$stamp"
fi

exec "$venv/bin/python" -m pytest -q -rs tests/proposals/test_edgeboxes.py tests/proposals/test_edges.py \
    tests/proposals/test_proposers.py tests/proposals/test_registry.py "$@"
