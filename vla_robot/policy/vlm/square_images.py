"""Square frames for SigLIP towers, as transformers' image processor describes them in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.vla.inputs.preprocess import Preprocessor
from vla_robot.policy.vla.json_files import read_json, shown, whole

BICUBIC = 3
"""Pillow's number of the only way of resizing that is done here."""
HALF = [0.5, 0.5, 0.5]


def read_square(folder: Path, config: Mapping[str, Any]) -> Preprocessor:
    """Read how frames become pixels.

    Args:
        folder: with preprocessor_config.json, or processor_config.json, where newer versions put the same.
        config: content of config.json.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for another size or another way of resizing.
    """
    source, data = image_processor_of(folder)
    size = whole(str(folder / "config.json"), "image_size", config["vision_config"].get("image_size", 224), 2048)
    wanted = {"height": size, "width": size}
    if data.get("size") != wanted:
        raise CheckpointError(f"{source}: size is {shown(data.get('size'))}, but the model reads {wanted}.")
    if data.get("resample", BICUBIC) != BICUBIC:
        raise CheckpointError(f"{source}: resample is {shown(data.get('resample'))}; only bicubic (3) is done here.")
    mean, std = data.get("image_mean", HALF), data.get("image_std", HALF)
    return Preprocessor.from_dict({"means": [mean], "stds": [std]}, size, 1, "resize-naive", source)


def image_processor_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return path and content of the image processor's description. Raises CheckpointError if there is none."""
    newer = folder / "processor_config.json"
    if newer.is_file() and isinstance(inner := read_json(newer).get("image_processor"), dict):
        return str(newer), inner
    path = folder / "preprocessor_config.json"
    return str(path), read_json(path)


def image_processor_files(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return path and content of each file that describes the image processor."""
    paths = (folder / "processor_config.json", folder / "preprocessor_config.json")
    return [(path, read_json(path)) for path in paths if path.is_file()]


type RGB = tuple[float, float, float]


def mean_and_std(
    source: str, data: Mapping[str, Any], mean: Sequence[float] = HALF, std: Sequence[float] = HALF
) -> tuple[RGB, RGB]:
    """Return an image processor's mean and standard deviation by channel, in [0, 1].

    Args:
        source: path of the file, for messages.
        data: its content.
        mean: used if the file has none.
        std: used if the file has none.

    Raises:
        CheckpointError: one of them is not three numbers.
    """
    try:
        return _triple(data.get("image_mean", mean)), _triple(data.get("image_std", std))
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{source}: image_mean and image_std must be RGB triples: {error}.") from error


def _triple(value: Any) -> RGB:
    r, g, b = map(float, value)
    return r, g, b


def siglip_processor(size: int) -> dict[str, Any]:
    """Return the content of preprocessor_config.json for square frames of an edge [px]."""
    return {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": HALF,
        "image_std": HALF,
        "resample": BICUBIC,
        "rescale_factor": 1 / 255,
        "size": {"height": size, "width": size},
    }
