"""Base of wrappers of an arm."""

from __future__ import annotations

from collections.abc import Mapping

from vla_robot.core.ports import Arm, ReportsStages


class WrappedArm:
    """Base class of an arm that wraps another one; it passes on the descriptive properties."""

    def __init__(self, arm: Arm) -> None:
        self._arm, self.embodiment = arm, arm.embodiment

    @property
    def instruction(self) -> str:
        return self._arm.instruction

    @property
    def can_wait(self) -> bool:
        return self._arm.can_wait

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        return self._arm.camera_stamps_ns

    @property
    def last_stages_ms(self) -> Mapping[str, float]:
        return self._arm.last_stages_ms if isinstance(self._arm, ReportsStages) else {}
