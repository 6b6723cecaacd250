"""A world's observation -> what a policy was trained on: its cameras and its state, by name, in its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vla_robot.core.embodiment import Embodiment, require_fit
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Policy


class ObservationAdapter:
    """Wraps a policy and is a policy. A world may offer more cameras and state than the policy knows."""

    def __init__(self, policy: Policy, wanted: Embodiment, offered: Embodiment) -> None:
        """
        Args:
            policy: sees only what it was trained on.
            wanted: that.
            offered: what the world gives.

        Raises:
            ContractError: something wanted is not offered, or actions mean different things.
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
