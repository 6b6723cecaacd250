"""Computes statistics of datasets: LeRobot's, for every feature, and OpenVLA's `dataset_statistics.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

QUANTILES: Mapping[str, float] = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
"""LeRobot's name of a quantile -> the quantile."""

PIXEL_VALUES = 256

Stats = dict[str, NDArray[Any]]
"""min, max, mean, std and quantiles, (D,) each, and count, (1,)."""


def describe(values: ArrayLike) -> Stats:
    """Return statistics of one feature over one episode.

    Args:
        values: (T,) or (T, D) numbers or bools.

    Returns:
        (D,) float64 each, (1,) for a feature of one number.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x.reshape(len(x), -1)
    quantiles = np.quantile(x, list(QUANTILES.values()), axis=0)
    return {
        "min": x.min(axis=0),
        "max": x.max(axis=0),
        "mean": x.mean(axis=0),
        "std": x.std(axis=0),
        "count": np.array([len(x)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def describe_finite(values: ArrayLike) -> Stats:
    """Return the statistics of `describe` over finite values only, since JSON has no others; 0 where there are none."""
    x = np.asarray(values, dtype=np.float64)
    x = x.reshape(len(x), -1)
    finite = np.isfinite(x)
    if finite.all():
        return describe(x)
    columns = [column[kept] if kept.any() else np.zeros(1) for column, kept in zip(x.T, finite.T, strict=True)]
    described = [describe(column) for column in columns]
    merged = {name: np.concatenate([d[name] for d in described]) for name in described[0]}
    return merged | {"count": np.array([len(x)])}


def count_pixels(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of pixels with each value in each channel, (3, 256), of a frame (H, W, 3) uint8."""
    channels = (np.bincount(image[..., c].ravel(), minlength=PIXEL_VALUES) for c in range(3))
    return np.stack(list(channels)).astype(np.int64)


def describe_pixels(counts: NDArray[np.int64], num_frames: int) -> Stats:
    """Return statistics of one camera from its pixel counts, in LeRobot's form: values in [0, 1], shape (3, 1, 1).

    Args:
        counts: (3, 256) from `count_pixels`, summed over frames.
        num_frames: number of frames.
    """
    values = np.arange(PIXEL_VALUES) / (PIXEL_VALUES - 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    below = np.cumsum(counts, axis=1)
    mean = shares @ values
    described = {
        "min": values[(counts > 0).argmax(axis=1)],
        "max": values[PIXEL_VALUES - 1 - (counts[:, ::-1] > 0).argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1)),
        **{name: values[(below >= q * below[:, -1:]).argmax(axis=1)] for name, q in QUANTILES.items()},
    }
    return {name: value.reshape(3, 1, 1) for name, value in described.items()} | {"count": np.array([num_frames])}


def merge(parts: Sequence[Stats]) -> Stats:
    """Return statistics of one feature over several episodes from the statistics of each.

    Mean and deviation are exact. Quantiles are the means of the episodes' quantiles, weighted by length, which is
    LeRobot's convention and an approximation; `dataset_statistics` computes quantiles over all steps.

    Source: lerobot 0.6.1, datasets/compute_stats.py, aggregate_feature_stats.
    """
    counts = np.array([int(part["count"][0]) for part in parts])

    def weighted(name: str) -> NDArray[np.float64]:
        return np.average([part[name] for part in parts], axis=0, weights=counts)

    mean = weighted("mean")
    squares = np.average([part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in parts], axis=0, weights=counts)
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(squares),
        "count": np.array([counts.sum()]),
        **{name: weighted(name) for name in QUANTILES},
    }


def dataset_statistics(
    name: str, actions: ArrayLike, states: ArrayLike, num_episodes: int, mask: Sequence[bool] | None = None
) -> dict[str, Any]:
    """Return the content of OpenVLA's `dataset_statistics.json`, over all transitions.

    Args:
        name: the dataset's name, which becomes the un-normalisation key.
        actions: (N, D) actions in their units.
        states: (N, S) states in their units.
        num_episodes: number of trajectories that the N transitions come from.
        mask: (D,) whether each dimension is normalised; by default all but the last, the gripper.

    Returns:
        Plain dictionaries and lists, ready for JSON.

    Source: openvla/openvla, prismatic/vla/datasets/rlds/utils/data_utils.py, get_dataset_statistics.
    """
    taken, state = np.asarray(actions), np.asarray(states)
    return {
        name: {
            "action": {**_block(taken), "mask": list(mask or [True] * (taken.shape[1] - 1) + [False])},
            "proprio": _block(state),
            "num_transitions": len(taken),
            "num_trajectories": num_episodes,
        }
    }


def _block(values: NDArray[Any]) -> dict[str, list[float]]:
    # One dimension at a time, so that a table of millions of steps on the disk is not copied to memory.
    described = [describe(values[:, dim]) for dim in range(values.shape[1])]
    return {name: [float(d[name][0]) for d in described] for name in ("mean", "std", "max", "min", "q01", "q99")}
