"""What TensorFlow Datasets reads from datasets, as one line of JSON. Runs in an environment of its own:

    uv venv --python 3.12 /tmp/tfds_venv
    uv pip install --python /tmp/tfds_venv/bin/python tensorflow-cpu tensorflow-datasets
    /tmp/tfds_venv/bin/python tests/tools/read_with_tfds.py FOLDER...          a digest of every field
    /tmp/tfds_venv/bin/python tests/tools/read_with_tfds.py FOLDER --time 3    frames per second, best of 3 passes

FOLDER holds dataset_info.json and features.json. Only this file imports TensorFlow.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false
from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import Any

REPEATS = 10
"""How often a small dataset is read in one pass, so that starting the pipeline does not count."""


def digest(folder: str) -> dict[str, Any]:
    """Episodes, steps, and a checksum of each field over all steps of the split "train", frames decoded."""
    import numpy as np
    import tensorflow_datasets as tfds

    sums: dict[str, Any] = {}
    episodes = steps = 0
    for episode in tfds.builder_from_directory(folder).as_dataset(split="train"):
        episodes += 1
        for step in episode["steps"]:
            steps += 1
            for name, value in _leaves(step):
                values = value.flat_values if hasattr(value, "flat_values") else value
                data = np.asarray(values.numpy())
                text = repr(data.tolist()) if data.dtype == object else data.tobytes()
                sums.setdefault(name, hashlib.sha256()).update(text.encode() if isinstance(text, str) else text)
    return {"episodes": episodes, "steps": steps, "fields": {name: s.hexdigest() for name, s in sums.items()}}


def frames_per_second(folder: str, passes: int) -> float:
    """As a training loop reads: episodes in order, all frames decoded, all cores; the best of some passes."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    dataset = tfds.builder_from_directory(folder).as_dataset(split="train")
    dataset = dataset.flat_map(lambda episode: episode["steps"]).repeat(REPEATS).prefetch(tf.data.AUTOTUNE)
    cameras = {name for step in dataset.take(1) for name, value in _leaves(step) if value.dtype == tf.uint8}
    best = 0.0
    for _ in range(passes):
        started_s = time.perf_counter()
        steps = sum(1 for _ in dataset)
        best = max(best, steps * len(cameras) / (time.perf_counter() - started_s))
    return best


def _leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(tree, dict):
        return [leaf for name, child in tree.items() for leaf in _leaves(child, f"{path}/{name}" if path else name)]
    return [(path, tree)]


if __name__ == "__main__":
    if "--time" in sys.argv:
        print(json.dumps({"frames_per_second": frames_per_second(sys.argv[1], int(sys.argv[-1]))}))
    else:
        print(json.dumps([digest(folder) for folder in sys.argv[1:]], sort_keys=True))
