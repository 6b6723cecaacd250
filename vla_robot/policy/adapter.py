"""Shows a policy what it was trained on: cameras and state that it knows by name, and frames as they were stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vla_robot.core.embodiment import Embodiment, require_fit
from vla_robot.core.image import turned
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Policy
from vla_robot.core.ports.wrapped_policy import WrappedPolicy


class ObservationAdapter(WrappedPolicy):
    """Policy that passes on to another only the cameras and state it knows; the world may offer more."""

    def __init__(self, policy: Policy, wanted: Embodiment, offered: Embodiment) -> None:
        """
        Args:
            policy: the wrapped policy.
            wanted: embodiment that the policy was trained with.
            offered: embodiment of the world.

        Raises:
            ContractError: the world lacks a wanted camera or state, or its actions mean something else.
        """
        require_fit(wanted, offered)
        super().__init__(policy)
        self._cameras = [camera.name for camera in wanted.cameras]
        names = [dim.name for dim in offered.state]
        self._state = [names.index(dim.name) for dim in wanted.state]

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return self._policy.act([self._select(observation) for observation in observations])

    def _select(self, observation: Observation) -> Observation:
        images = {name: observation.images[name] for name in self._cameras}
        before = tuple(self._select(earlier) for earlier in observation.before)
        return replace(observation, images=images, state=observation.state[self._state], before=before)


class MirroredFrames(WrappedPolicy):
    """Policy that passes every frame on, with left and right exchanged, to one that was trained on mirrored frames, as
    those of LIBERO's published data."""

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return self._policy.act([mirrored(observation) for observation in observations])


def mirrored(observation: Observation) -> Observation:
    """Return an observation whose frames have left and right exchanged."""
    images = {name: turned(image, 0, mirror=True) for name, image in observation.images.items()}
    return replace(observation, images=images, before=tuple(map(mirrored, observation.before)))
