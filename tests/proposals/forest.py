"""Write a structured forest in the format that OpenCV reads: one tree that finds an edge where a gradient is steep."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

# as in the models that are published, but for the number of trees
OPTIONS = {
    "stride": 2,
    "shrinkNumber": 2,
    "patchSize": 32,
    "patchInnerSize": 16,
    "numberOfGradientOrientations": 4,
    "gradientSmoothingRadius": 0,
    "regFeatureSmoothingRadius": 2,
    "ssFeatureSmoothingRadius": 8,
    "gradientNormalizationRadius": 4,
    "selfsimilarityGridSize": 5,
    "numberOfTrees": 1,
    "numberOfTreesToEvaluate": 1,
}
MAGNITUDE, MIDDLE = 3, 8 * 16 + 8  # the channel behind the three colours; the middle of the 16 x 16 shrunken patch


def write_forest(path: Path) -> Path:
    """Write the model: if the gradient in the middle of a patch is steep, there are edges around it."""
    middle = [y * 16 + x for y in range(4, 12) for x in range(4, 12)]
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    file.startWriteStruct("options", cv2.FILE_NODE_MAP)
    for name, value in OPTIONS.items():
        file.write(name, value)
    file.endWriteStruct()
    trees = {
        "childs": np.array([[2, 0, 0]], np.int32),  # the root goes to node 1 below its threshold, else to node 2
        "featureIds": np.array([[MAGNITUDE * 256 + MIDDLE, 0, 0]], np.int32),
        "thresholds": np.array([[0.05, 0, 0]], np.float32),
        "edgeBoundaries": np.array([[0, 0, 0, len(middle)]], np.int32),
        "edgeBins": np.array([middle], np.int32),
    }
    for name, rows in trees.items():
        file.startWriteStruct(name, cv2.FILE_NODE_SEQ)
        for row in rows.tolist():
            file.startWriteStruct("", cv2.FILE_NODE_SEQ)
            for value in row:
                file.write("", value)
            file.endWriteStruct()
        file.endWriteStruct()
    file.release()
    return path
