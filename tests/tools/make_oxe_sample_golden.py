"""What TensorFlow Datasets and the reference's own standardisation make of the RLDS samples.

    python make_oxe_sample_golden.py REFERENCE SAMPLES OUT.npz

REFERENCE is a checkout of openvla/openvla; SAMPLES is tests/golden/rlds_samples. The stored numbers were made at
c8f03f48 with TensorFlow 2.21 and TensorFlow Datasets 4.9.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
from make_oxe_golden import load_reference, standard


def trajectories(folder: Path) -> list[dict[str, Any]]:
    """Every episode of every split as the reference's functions expect it: nested columns without frames."""
    builder = tfds.builder_from_directory(str(folder))
    dataset = builder.as_dataset(split="all", decoders={"steps": tfds.decode.SkipDecoding()})
    return [tf.nest.map_structure(lambda values: values, dict(episode["steps"])) for episode in dataset]


def statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """As get_dataset_statistics computes them."""
    found = {"mean": values.mean(0), "std": values.std(0), "max": values.max(0), "min": values.min(0)}
    return found | {"q01": np.quantile(values, 0.01, axis=0), "q99": np.quantile(values, 0.99, axis=0)}


def main(reference: Path, samples: Path, out: Path) -> None:
    configs, transforms = load_reference(reference)
    stored: dict[str, Any] = {}
    for folder in sorted(samples.glob("*/*.*.*")):
        name = folder.parent.name
        made = [standard(configs[name], transforms[name], tree) for tree in trajectories(folder)]
        for number, trajectory in enumerate(made):
            stored |= {f"{name}|{number:03d}|{key}": values for key, values in trajectory.items()}
        for key, block in (("action", "action"), ("state", "proprio")):
            for row, values in statistics(np.concatenate([trajectory[key] for trajectory in made])).items():
                stored[f"{name}|{block}|{row}"] = values
    np.savez_compressed(out, **stored)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
