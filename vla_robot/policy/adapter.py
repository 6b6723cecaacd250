"""Selects from a world's observation the cameras and the state that a policy was trained on, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vla_robot.core.embodiment import Embodiment, require_fit
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Policy


class ObservationAdapter:
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
        self._policy = policy
        self._cameras = [camera.name for camera in wanted.cameras]
        names = [dim.name for dim in offered.state]
        self._state = [names.index(dim.name) for dim in wanted.state]

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return self._policy.act([self._select(observation) for observation in observations])

    def _select(self, observation: Observation) -> Observation:
        images = {name: observation.images[name] for name in self._cameras}
        return replace(observation, images=images, state=observation.state[self._state])
