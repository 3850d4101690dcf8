#!/bin/sh
# Test what needs a contrib build of OpenCV: `sh tools/contrib.sh [PYTEST OPTIONS]`.
# Two OpenCV wheels must not be installed side by side, so the contrib build goes into a folder of its own inside the
# environment of the tests, which only this run puts first on Python's path: opencv-python stays as it is.
set -eu
cd "$(dirname "$0")/.."
sh tools/setup.sh test
venv=${SPPNET_VENV:-.venv}
contrib=$venv/opencv-contrib

if ! [ -e "$contrib" ]
then
    rm -rf -- "$contrib.new"
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --target "$contrib.new" \
        "opencv-contrib-python-headless>=4.8"
    mv "$contrib.new" "$contrib"
fi

export PYTHONPATH="$contrib${PYTHONPATH:+:$PYTHONPATH}"
exec "$venv/bin/python" -m pytest -q -rs tests/proposals/test_edgeboxes.py tests/proposals/test_edges.py \
    tests/proposals/test_proposers.py tests/proposals/test_registry.py "$@"
