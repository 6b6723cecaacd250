"""Sends each camera's frame once, when it is new; the controller completes observations with earlier frames.

    bridge   tick 7 {wrist}   tick 8 {wrist}   tick 9 {wrist, base}        new frames, and the stamps of all
    watch    <- 7 {wrist: 7, base: 6}                                      newest tick, and the frames received

A frame is sent again if the controller received the tick that carried it but lacks the frame: it was lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vla_robot.core.messages import Image, Observation


@dataclass
class FramesUnderWay:
    """The bridge's side: frames that one controller has, or that are on their way to it.

    Attributes:
        sent: camera -> stamp [ns] of its last frame that was sent, and the number of the tick that carried it.
        asked: whether the controller reports its frames. One that does not gets every frame with every tick.
    """

    sent: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    asked: bool = False

    def acknowledge(self, seen: int, there: Mapping[str, int] | None) -> None:
        """Note the frames that arrived.

        Args:
            seen: number of the newest tick that arrived.
            there: camera -> stamp of its newest frame that arrived [ns]; None if the controller does not report frames.
        """
        self.asked = there is not None
        held = there or {}
        self.sent = {n: (at, k) for n, (at, k) in self.sent.items() if k > seen or held.get(n) == at}

    def give_up(self, seen: int) -> None:
        """Take frames of ticks after `seen` for lost."""
        self.sent = {n: (at, k) for n, (at, k) in self.sent.items() if k <= seen}

    def pick(self, number: int, observation: Observation) -> Observation:
        """Return the observation with the stamps of all cameras but only the frames to send with tick `number`."""
        stamps_ns = stamps_of(observation)
        if not self.asked:
            return replace(observation, stamps_ns=stamps_ns)
        new = [n for n in observation.images if n not in self.sent or self.sent[n][0] != stamps_ns[n]]
        self.sent.update({name: (stamps_ns[name], number) for name in new})
        return replace(observation, images={n: observation.images[n] for n in new}, stamps_ns=stamps_ns)


class NewestFrames:
    """The controller's side: the newest frame of each camera and its stamp."""

    def __init__(self) -> None:
        self._episode = 0
        self._frames: dict[str, tuple[Image, int]] = {}

    @property
    def stamps_ns(self) -> dict[str, int]:
        """Camera -> stamp of its newest frame [ns]."""
        return {name: stamp_ns for name, (_, stamp_ns) in self._frames.items()}

    def complete(self, episode: int, observation: Observation) -> Observation | None:
        """Return an observation completed with earlier frames that were not sent again.

        A lost frame is replaced by the one before it, with that one's stamp.

        Args:
            episode: number of the episode; frames of another one are dropped.
            observation: as received; `stamps_ns` names all cameras.

        Returns:
            The observation, or None while a camera has no frame yet.
        """
        if episode != self._episode:
            self._episode, self._frames = episode, {}
        for name, image in observation.images.items():
            self._frames[name] = image, observation.stamps_ns.get(name, observation.stamp_ns)
        if any(name not in self._frames for name in observation.stamps_ns):
            return None
        stamps_ns = self.stamps_ns
        return replace(
            observation,
            images={name: image for name, (image, _) in self._frames.items()},
            stamp_ns=min([observation.stamp_ns, *stamps_ns.values()]),
            stamps_ns=stamps_ns,
        )


def stamps_of(observation: Observation) -> dict[str, int]:
    """Return camera -> time of capture [ns]; without `stamps_ns`, the observation's stamp for all."""
    return {name: observation.stamps_ns.get(name, observation.stamp_ns) for name in observation.images}
