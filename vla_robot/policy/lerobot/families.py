"""The types of lerobot's policies that run here, and the reasons why the others do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vla_robot.core.errors import CheckpointError, unknown

LOCAL_WEIGHTS = {"pretrained_backbone_weights": None}
"""The file has the backbone's weights: torchvision's are not fetched."""

UNCOMPILED = {"compile_model": False}
"""A compilation delays the first answer by minutes and changes no result."""


@dataclass(frozen=True)
class Family:
    """How a type of policy is run.

    Attributes:
        noise: (configuration) -> shape of one row's noise; None for a policy without randomness.
        settings: fields of the configuration that have these values here, whatever the folder says.
        hub_fields: fields of the configuration that name a model on the hub.
        resizes: whether it resizes frames itself, so that any size will do.
        has_rtc: whether it continues committed actions by real-time chunking.
    """

    noise: Callable[[Any], tuple[int, ...]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    hub_fields: tuple[str, ...] = ()
    resizes: bool = False
    has_rtc: bool = False


def _flow_noise(config: Any) -> tuple[int, ...]:
    return config.chunk_size, config.max_action_dim


_PI = Family(_flow_noise, UNCOMPILED, resizes=True, has_rtc=True)

FAMILIES: dict[str, Family] = {
    "act": Family(settings=LOCAL_WEIGHTS),
    "diffusion": Family(
        lambda config: (config.horizon, config.action_feature.shape[0]), {**LOCAL_WEIGHTS, **UNCOMPILED}
    ),
    "smolvla": Family(
        # Its weights are in the file, and the vision-language model's own need not be here.
        _flow_noise,
        {**UNCOMPILED, "load_vlm_weights": False},
        ("vlm_model_name",),
        resizes=True,
        has_rtc=True,
    ),
    "pi0": _PI,
    "pi05": _PI,
}

_QUEUES = "it reads the observations of its own queues, which a policy that answers any observation cannot fill"
_REMOTE_CODE = "its tokenizer or model is code from the hub, which is never run here"
_BACKBONE = "it builds its backbone from the hub, which was not available to test it"

REASONS: dict[str, str] = {
    "pi0_fast": f"{_REMOTE_CODE}, and malformed answers become zeros",
    "molmoact2": _REMOTE_CODE,
    "vqbet": _QUEUES,
    "tdmpc": _QUEUES,
    "gaussian_actor": "it gives single actions for reinforcement learning, and has no chunks",
    **dict.fromkeys(
        ("eo1", "evo1", "fastwam", "groot", "lingbot_va", "multi_task_dit", "vla_jepa", "wall_x", "xvla"), _BACKBONE
    ),
}
"""Types of lerobot 0.6.1 that do not run here -> why."""


def family_of(kind: str, where: object) -> Family:
    """Return the family of a policy's type.

    Raises:
        CheckpointError: it does not run here; the message says why.
    """
    if kind in REASONS:
        raise CheckpointError(f"{where}: a policy of type '{kind}' does not run here: {REASONS[kind]}.")
    if kind not in FAMILIES:
        raise CheckpointError(f"{where}: {unknown('type of policy', kind, FAMILIES)}")
    return FAMILIES[kind]
