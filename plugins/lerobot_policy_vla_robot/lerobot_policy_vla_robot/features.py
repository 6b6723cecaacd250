"""Features and batches of lerobot <-> embodiments and observations of vla_robot.

    observation.images.NAME  (B, 3, H, W) float in [0, 1]   <->  Observation.images[NAME]  (H, W, 3) uint8
    observation.state        (B, S) float32                 <->  Observation.state         (S,) float64
    action                   (B, D) float64                 <->  ActionChunk.actions, a row
    task                     B texts                        <->  Observation.instruction

The numbers keep vla_robot's units (metres, radians, 1 for an open gripper) and the order of the embodiment. lerobot's
features have a shape and no names, so our worlds also put their embodiment into each batch, under EMBODIMENT_KEY.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from numpy.typing import NDArray
from torch import Tensor, uint8

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.messages import Observation

EMBODIMENT_KEY = "observation.vla_robot_embodiment"
"""Key of the `Embodiment` that one of our worlds adds to a batch."""

TASK = "task"

FRAME_TOLERANCE = 1e-3
"""How far a frame's numbers may lie outside of [0, 1]; an interpolation overshoots a little."""


def image_key(camera: str) -> str:
    """Return lerobot's key of a camera's frames."""
    return f"{OBS_IMAGES}.{camera}"


def input_features(embodiment: Embodiment) -> dict[str, PolicyFeature]:
    """Return lerobot's features of what a policy of this embodiment reads."""
    images = {
        image_key(camera.name): PolicyFeature(FeatureType.VISUAL, (3, camera.height, camera.width))
        for camera in embodiment.cameras
    }
    state = {OBS_STATE: PolicyFeature(FeatureType.STATE, (len(embodiment.state),))} if embodiment.state else {}
    return images | state


def output_features(embodiment: Embodiment) -> dict[str, PolicyFeature]:
    """Return lerobot's feature of the action."""
    return {ACTION: PolicyFeature(FeatureType.ACTION, (len(embodiment.action),))}


def require_features(
    embodiment: Embodiment,
    inputs: Mapping[str, PolicyFeature],
    outputs: Mapping[str, PolicyFeature],
    action_names: Sequence[str] | None,
) -> None:
    """Raise ContractError with every difference unless lerobot's features fit the policy's embodiment.

    Args:
        embodiment: of the policy.
        inputs: features of the environment, dataset or robot; empty if they are not known.
        outputs: the same of the action.
        action_names: names of the action's numbers, if a dataset says them.
    """
    wanted, problems = input_features(embodiment), list[str]()
    if inputs:
        problems += [f"'{key}' is missing; there are {', '.join(inputs)}" for key in wanted if key not in inputs]
    offered = inputs.get(OBS_STATE)
    if offered is not None and offered.shape[0] < len(embodiment.state):  # of a longer one, names choose
        names = ", ".join(dim.name for dim in embodiment.state)
        problems.append(f"'{OBS_STATE}' has {offered.shape[0]} numbers, the policy reads {names}")
    taken = outputs.get(ACTION)
    if taken is not None and tuple(taken.shape) != (len(embodiment.action),):
        problems.append(
            f"an action has {tuple(taken.shape)} numbers there, the policy gives {', '.join(embodiment.action.names)}"
        )
    if action_names is not None and list(action_names) != list(embodiment.action.names):
        problems.append(
            f"an action is {', '.join(action_names)} there, the policy gives {', '.join(embodiment.action.names)}"
        )
    if problems:
        raise ContractError(
            f"the policy was made for '{embodiment.name}' and does not fit: {'; '.join(problems)}. "
            "lerobot's option --rename_map gives observations other names."
        )


def observations_of(
    batch: Mapping[str, Any], cameras: Sequence[str], state_size: int, stamp_ns: int, step: int
) -> list[Observation]:
    """Return the observations of a batch's rows.

    Args:
        batch: after the preprocessor; keys as on top of this module, other keys are ignored.
        cameras: names of the cameras to read.
        state_size: how many numbers the state has; 0 does not read it.
        stamp_ns: time of the batch [ns].
        step: control steps since the episode began.

    Raises:
        ContractError: a key is missing or has another shape.
        PolicyError: frames are not in [0, 1]: they were normalised before.
    """
    frames = {name: _frames(batch, image_key(name)) for name in cameras}
    states = _states(batch, state_size)
    rows = len(states) if states is not None else len(next(iter(frames.values())))
    texts = _texts(batch, rows)
    return [
        Observation(
            images={name: images[row] for name, images in frames.items()},
            state=states[row] if states is not None else np.empty(0),
            instruction=texts[row],
            stamp_ns=stamp_ns,
            step=step,
        )
        for row in range(rows)
    ]


def _entry(batch: Mapping[str, Any], key: str, ndim: int) -> Tensor:
    tensor = batch.get(key)
    if tensor is None:
        observed = ", ".join(name for name in batch if name.startswith("observation.")) or "none"
        raise ContractError(f"the batch lacks '{key}', which the policy reads; its observations are {observed}.")
    if tensor.ndim != ndim:
        raise ContractError(f"'{key}' has shape {tuple(tensor.shape)}; {ndim} dimensions are needed, the batch first.")
    return tensor


def _frames(batch: Mapping[str, Any], key: str) -> NDArray[np.uint8]:
    """Return (B, H, W, 3) frames; a frame that was uint8 before lerobot divided it by 255 is the same again."""
    tensor = _entry(batch, key, 4)
    if tensor.shape[1] != 3:
        raise ContractError(f"'{key}' has shape {tuple(tensor.shape)}; (B, 3, H, W) is needed.")
    if tensor.dtype != uint8:
        low, high = tensor.min().item(), tensor.max().item()
        if low < -FRAME_TOLERANCE or high > 1 + FRAME_TOLERANCE:
            raise PolicyError(f"'{key}' lies between {low:g} and {high:g}; frames in [0, 1] are needed.")
        tensor = (tensor.clamp(0, 1) * 255).round().to(uint8)
    return np.ascontiguousarray(tensor.permute(0, 2, 3, 1).cpu().numpy())


def _states(batch: Mapping[str, Any], size: int) -> NDArray[np.float64] | None:
    if not size:
        return None
    tensor = _entry(batch, OBS_STATE, 2)
    if tensor.shape[1] != size:
        raise ContractError(f"'{OBS_STATE}' has {tensor.shape[1]} numbers, but {size} are needed.")
    return tensor.cpu().numpy().astype(np.float64)


def _texts(batch: Mapping[str, Any], rows: int) -> list[str]:
    task = batch.get(TASK)
    texts: list[str] = [task] * rows if isinstance(task, str) else list(task or ())
    if len(texts) != rows:
        raise ContractError(f"the batch has {rows} observations and {len(texts)} instructions under '{TASK}'.")
    return texts
