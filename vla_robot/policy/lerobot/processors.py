"""lerobot's own processing before and after the model, with every statistic that it needs.

lerobot passes a feature on unchanged if its statistics are missing, so that a policy acts on raw numbers. Here that is
an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import CheckpointError, in_words
from vla_robot.policy.lerobot.folder import ACTION, POSTPROCESSOR, PREPROCESSOR, TOKENIZER_STEP, PolicyFolder
from vla_robot.policy.lerobot.hub import local_folder, offline

NEEDED = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
"""lerobot's kind of normalisation -> the statistics that it reads."""

Range = tuple[NDArray[np.float64], NDArray[np.float64]]
"""(D,) smallest and (D,) largest value of a feature in the training data, in the policy's units."""


def build_processors(folder: PolicyFolder, config: Any, hub: Mapping[str, Path], device: str) -> tuple[Any, Any]:
    """Return lerobot's pipelines before and after the model.

    Args:
        folder: the checked folder.
        config: lerobot's configuration.
        hub: the recipe's table [hub].
        device: torch's device of the model.

    Raises:
        CheckpointError: a tokenizer is not here, statistics are missing, or lerobot refuses a step.
    """
    from lerobot.policies.factory import make_pre_post_processors

    names = {step["registry_name"] for step in folder.preprocessor}
    overrides: dict[str, Any] = {"device_processor": {"device": device}} if "device_processor" in names else {}
    if folder.tokenizer is not None:
        overrides[TOKENIZER_STEP] = {"tokenizer_name": str(local_folder(folder.tokenizer, "the tokenizer", hub))}
    try:
        with offline():
            before, after = make_pre_post_processors(
                config, pretrained_path=str(folder.path), preprocessor_overrides=overrides
            )
    except Exception as error:
        raise CheckpointError(f"{folder.path}: lerobot cannot build its processors: {in_words(error)}.") from error
    problems = [*_problems(folder, before, PREPROCESSOR), *_problems(folder, after, POSTPROCESSOR)]
    if problems:
        raise CheckpointError(f"{folder.path}: {'; '.join(problems)}.")
    return before, after


def is_relative(before: Any) -> bool:
    """Return whether the policy's actions are relative to the state."""
    return any(getattr(step, "enabled", False) for step in before.steps)


def ranges(pipeline: Any) -> dict[str, Range]:
    """Return feature -> its range in the training data, where the statistics have one."""
    stats = {name: s for step in _normalisers(pipeline) for name, s in step.stats.items()}
    return {
        name: (np.asarray(s["min"], np.float64).ravel(), np.asarray(s["max"], np.float64).ravel())
        for name, s in stats.items()
        if "min" in s and "max" in s
    }


def _normalisers(pipeline: Any) -> list[Any]:
    return [step for step in pipeline.steps if hasattr(step, "norm_map")]


def _problems(folder: PolicyFolder, pipeline: Any, file: str) -> Iterator[str]:
    """Yield what a pipeline lacks to normalise the features that its folder says are normalised."""
    steps = _normalisers(pipeline)
    if len(steps) != 1:
        yield f"{file} has {len(steps)} steps that normalise, expected one"
        return
    (step,) = steps
    modes = {kind.value: mode.value for kind, mode in step.norm_map.items()}
    inputs = folder.config["input_features"] if file == PREPROCESSOR else {}
    for name, feature in {**inputs, ACTION: folder.config["output_features"][ACTION]}.items():
        if "empty_camera" in name:
            continue
        if name not in step.features:
            yield f"{file} does not know the feature '{name}' of config.json"
        needed = NEEDED.get(modes.get(feature["type"], "IDENTITY"), ())
        found = step.stats.get(name, {})
        if missing := [stat for stat in needed if stat not in found]:
            yield f"{file} has no {' and '.join(missing)} of '{name}', so lerobot would not normalise it"
        for stat in (stat for stat in needed if stat in found):
            values = np.asarray(found[stat])
            width = feature["shape"][0]
            if values.size not in (1, width) and feature["type"] != "VISUAL":
                yield f"{file}: {stat} of '{name}' has {values.size} numbers, the feature {width}"
            if not np.isfinite(values).all():
                yield f"{file}: {stat} of '{name}' is not finite"
