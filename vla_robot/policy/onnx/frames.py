"""How a frame becomes pixels, as data: each preprocessor of the families as a table of onnx.json, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_robot.core.errors import CheckpointError, PolicyError
from vla_robot.core.untrusted import malformed
from vla_robot.policy.vla.inputs.image_preprocessing import require_preprocessing
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor, Preprocessor, Scales
from vla_robot.policy.vla.json_files import shown, whole
from vla_robot.policy.vlm.native_images import Budget, NativePreprocessor, filling, within
from vla_robot.policy.vlm.split_images import LARGEST_EDGE, SplitPreprocessor

FITS = {"within": within, "filling": filling}
STRATEGIES = ("resize-naive", "letterbox", "resize-crop")
MOST_PIXELS = LARGEST_EDGE**2


def as_data(preprocessor: FramePreprocessor) -> dict[str, Any]:
    """Return a preprocessor as data. Raises PolicyError for one of a family that is not known here."""
    means, stds = preprocessor.scales
    scales = {"means": means, "stds": stds}
    match preprocessor:
        case Preprocessor(size=size, strategy=strategy, image_preprocessing=name):
            return {"kind": "square", "size": size, "strategy": strategy, "image_preprocessing": name, **scales}
        case NativePreprocessor(budget=budget, fit=fit):
            name = next(name for name, each in FITS.items() if each is fit)
            sizes = {"cell": budget.cell, "smallest": budget.smallest, "largest": budget.largest}
            return {"kind": "native", "fit": name, **sizes, **scales}
        case SplitPreprocessor(edge=edge, longest=longest, grid=grid):
            return {"kind": "split", "edge": edge, "longest": longest, "grid": grid, **scales}
        case other:
            raise PolicyError(
                f"frames of a {type(other).__name__} have no form as data, so the policy is not exported."
            )


def from_data(source: str, data: Mapping[str, Any]) -> FramePreprocessor:
    """Return the preprocessor of a table of the file at `source`. Raises CheckpointError for an impossible one."""
    with malformed(f"{source}: preprocessing", CheckpointError):
        means, stds = _scales(data["means"]), _scales(data["stds"])
        match data["kind"]:
            case "square":
                if data["strategy"] not in STRATEGIES:
                    raise CheckpointError(f"{source}: strategy is {shown(data['strategy'])}; known: {STRATEGIES}.")
                size = whole(source, "size", data["size"], LARGEST_EDGE)
                name = require_preprocessing(data["image_preprocessing"])
                return Preprocessor(size, data["strategy"], means, stds, name)
            case "native":
                cell = whole(source, "cell", data["cell"], LARGEST_EDGE)
                largest = whole(source, "largest", data["largest"], MOST_PIXELS, cell * cell)
                smallest = whole(source, "smallest", data["smallest"], largest, 0)
                return NativePreprocessor(Budget(cell, smallest, largest), FITS[data["fit"]], means[0], stds[0])
            case "split":
                rows, columns = data["grid"] or (None, None)
                grid = None if rows is None else (whole(source, "grid", rows, 64), whole(source, "grid", columns, 64))
                edges = [whole(source, key, data[key], LARGEST_EDGE) for key in ("edge", "longest")]
                return SplitPreprocessor(edges[0], edges[1], grid, means[0], stds[0])
            case other:
                raise CheckpointError(
                    f"{source}: preprocessing is of kind {shown(other)}; known: square, native, split."
                )


def _scales(data: Any) -> Scales:
    """Return lists of three numbers by tower. Raises ValueError for others."""
    scales = tuple((float(r), float(g), float(b)) for r, g, b in data)
    if not 1 <= len(scales) <= 2:
        raise ValueError(f"{len(scales)} towers")
    return scales
