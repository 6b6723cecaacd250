"""Run the reference's own standardisation, in TensorFlow, on invented episodes of every dataset of the registry.

    python make_oxe_golden.py REFERENCE OUT.npz

REFERENCE is a checkout of openvla/openvla; the stored numbers were made at c8f03f48 with TensorFlow 2.21. The columns
have the widths of the real datasets. tensorflow_graphics has no build for current Pythons, so that the one function
which is needed of it is written here, from its documentation.
"""

from __future__ import annotations

import sys
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

STEPS = 8
INSTRUCTION = "language_instruction"
NATURAL = "observation/natural_language_instruction"
BOOLEAN, WHOLE, COMPRESSED, CODES, POSE, DEPTH = "boolean", "whole", "compressed", "codes", "pose", "depth"

Width = int | None | tuple[str, int]
"""Columns of a step; None is a single number, a pair is something else than float32."""

FIELDS = Path(__file__).with_name("oxe_fields.txt")
"""One dataset a line: NAME FIELD=WIDTH ..."""


def parse(text: str) -> dict[str, dict[str, Width]]:
    """One dataset a line: NAME FIELD=WIDTH ..."""
    shapes: dict[str, dict[str, Width]] = {}
    for line in text.strip().splitlines():
        name, *fields = line.split()
        shapes[name] = {field: width_of(text) for field, _, text in (entry.partition("=") for entry in fields)}
    return shapes


def width_of(text: str) -> Width:
    if text == "scalar":
        return None
    kind, colon, number = text.partition(":")
    return (kind, int(number)) if colon else int(text)


def invent(width: Width, rng: np.random.Generator) -> Any:
    """STEPS values of a field; the last column looks like a gripper's."""
    if isinstance(width, tuple):
        return invent_special(*width, rng)
    values = rng.normal(size=(STEPS, width or 1)).astype(np.float32)
    values[:, -1] = rng.choice([-1.0, -0.05, 0.0, 0.0, 0.02, 0.4, 0.7, 0.97, 1.0], size=STEPS)
    return values if width is not None else values[:, 0]


def invent_special(kind: str, width: int, rng: np.random.Generator) -> Any:
    if kind == BOOLEAN:
        return rng.random(STEPS) < 0.5
    if kind == WHOLE:
        return rng.integers(0, 2, size=(STEPS, width)).astype(np.int64)
    if kind == COMPRESSED:
        return rng.normal(size=(STEPS, width)).astype(np.float32)
    if kind == CODES:
        codes = np.zeros((STEPS, width), dtype=np.int32)
        codes[:, :4] = [ord(letter) for letter in "push"]
        return codes
    if kind == POSE:
        quaternions = rng.normal(size=(STEPS, 4))
        quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
        grippers = rng.choice([-1.0, 0.0, 0.3, 1.0], size=(STEPS, 1))
        return np.concatenate([rng.normal(size=(STEPS, 3)), quaternions, grippers], axis=1).astype(np.float32)
    return rng.random((STEPS, 2, 2, 1)).astype(np.float32)  # DEPTH


def nested(columns: dict[str, Any], shapes: dict[str, Width]) -> dict[str, Any]:
    """Columns as the reference's functions expect them."""
    texts = tf.constant([f"do task {step}" for step in range(STEPS)])
    tree: dict[str, Any] = {INSTRUCTION: texts, "observation": {"natural_language_instruction": texts}}
    tree["observation"] |= {f"exterior_image_{i}_left": texts for i in (1, 2)}
    for name, values in columns.items():
        width = shapes[name]
        if isinstance(width, tuple) and width[0] == COMPRESSED:
            values = tf.constant([zlib.compress(row.tobytes()) for row in values])
        first, _, rest = name.partition("/")
        if rest:
            tree.setdefault(first, {})[rest] = tf.constant(values)
        else:
            tree[first] = tf.constant(values)
    return tree


def load_reference(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The reference's configurations and functions, without the packages that only the rest of it needs."""
    sys.path.insert(0, str(root))
    for name in ("dlimp", "tensorflow_graphics", "tensorflow_graphics.geometry", "tqdm"):
        sys.modules.setdefault(name, types.ModuleType(name))
    overwatch = types.ModuleType("prismatic.overwatch")
    overwatch.initialize_overwatch = lambda name: None  # type: ignore[attr-defined]
    sys.modules["tqdm"].tqdm = None  # type: ignore[attr-defined]
    sys.modules["dlimp"].DLataset = object  # type: ignore[attr-defined]
    transformation = types.ModuleType("tensorflow_graphics.geometry.transformation")
    transformation.euler = types.SimpleNamespace(from_quaternion=euler_from_quaternion)  # type: ignore[attr-defined]
    sys.modules[transformation.__name__] = transformation
    base = root / "prismatic"
    for name, path in (
        ("prismatic", base),
        ("prismatic.vla", base / "vla"),
        ("prismatic.vla.datasets", base / "vla/datasets"),
        ("prismatic.vla.datasets.rlds", base / "vla/datasets/rlds"),
        ("prismatic.vla.datasets.rlds.oxe", base / "vla/datasets/rlds/oxe"),
        ("prismatic.vla.datasets.rlds.oxe.utils", base / "vla/datasets/rlds/oxe/utils"),
        ("prismatic.vla.datasets.rlds.utils", base / "vla/datasets/rlds/utils"),
    ):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]  # its __init__ would import the whole of the reference
        sys.modules[name] = package
    sys.modules["prismatic.overwatch"] = overwatch
    from prismatic.vla.datasets.rlds.oxe.configs import OXE_DATASET_CONFIGS  # type: ignore[import-not-found]
    from prismatic.vla.datasets.rlds.oxe.transforms import (  # type: ignore[import-not-found]
        OXE_STANDARDIZATION_TRANSFORMS,
    )

    return OXE_DATASET_CONFIGS, OXE_STANDARDIZATION_TRANSFORMS


def euler_from_quaternion(quaternions: Any) -> Any:
    """Angles about x, y and z of rotations that are not near a gimbal lock."""
    x, y, z, w = tf.unstack(quaternions, axis=-1)
    about_x = tf.atan2(2 * (y * z + x * w), 1 - 2 * (x * x + y * y))
    about_y = -tf.asin(2 * (x * z - y * w))
    about_z = tf.atan2(2 * (x * y + z * w), 1 - 2 * (y * y + z * z))
    return tf.stack([about_x, about_y, about_z], axis=-1)


def standard(config: dict[str, Any], transform: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """The reference's `restructure`, as far as numbers and texts go."""
    made = transform(tree)
    observation, steps = made["observation"], len(made["action"])
    parts = [
        np.zeros((steps, 1), np.float32) if key is None else tf.cast(observation[key], tf.float32).numpy()
        for key in config["state_obs_keys"]
    ]
    state = np.concatenate([part.reshape(steps, -1) for part in parts], axis=1)
    texts = np.array([text.decode() for text in made[INSTRUCTION].numpy()])
    return {"action": tf.cast(made["action"], tf.float32).numpy(), "state": state, "instruction": texts}


def main(reference: Path, out: Path) -> None:
    configs, transforms = load_reference(reference)
    stored: dict[str, Any] = {}
    for number, (name, shapes) in enumerate(parse(FIELDS.read_text()).items()):
        rng = np.random.default_rng(number)
        columns = {field: invent(width, rng) for field, width in shapes.items()}
        made = standard(configs[name], transforms[name], nested(columns, shapes))
        stored |= {f"{name}|in|{field}": values for field, values in columns.items()}
        stored |= {f"{name}|out|{key}": values for key, values in made.items()}
    np.savez_compressed(out, **stored)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
