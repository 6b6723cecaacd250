"""lerobot's processors around a policy of vla_robot: they rename, batch and move tensors; the policy normalises."""

from __future__ import annotations

from typing import Any

from lerobot.lerobot_types import PolicyAction
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from lerobot_policy_vla_robot.configuration_vla_robot import VlaRobotConfig

Preprocessor = PolicyProcessorPipeline[dict[str, Any], dict[str, Any]]
Postprocessor = PolicyProcessorPipeline[PolicyAction, PolicyAction]


def make_vla_robot_pre_post_processors(
    config: VlaRobotConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[Preprocessor, Postprocessor]:
    """Return the processors before and after the policy. Statistics of a dataset are not used.

    The steps have the names that lerobot's tools override: a rename map, and the device.
    """
    before = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=config.device or "cpu"),
    ]
    return (
        PolicyProcessorPipeline(steps=before, name=POLICY_PREPROCESSOR_DEFAULT_NAME),
        PolicyProcessorPipeline(
            steps=[DeviceProcessorStep(device="cpu")],
            name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )
