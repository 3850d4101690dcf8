#!/bin/sh
# Install sppnet into .venv and detect objects in photos that scikit-image installs: `sh tools/demo.sh [FOLDER]`.
set -eu
cd "$(dirname "$0")/.."
sh tools/setup.sh
venv=${SPPNET_VENV:-.venv}
out=${1:-runs/demo}
photos=$("$venv/bin/python" -c 'import skimage, pathlib; print(pathlib.Path(skimage.__file__).parent / "data")')
"$venv/bin/sppnet" detect "$photos/astronaut.png" "$photos/chelsea.png" "$photos/coffee.png" \
    "$photos/motorcycle_left.png" "$photos/rocket.jpg" --out "$out"
echo "The photos with their boxes are in $out, what was found in $out/detections.json."
