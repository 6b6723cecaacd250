"""Each camera's frame crosses the wire once, when it is new; the controller puts observations together.

    bridge   tick 7 {wrist}   tick 8 {wrist}   tick 9 {wrist, base}        what is new, and the stamps of all
    watch    <- 7 {wrist: 7, base: 6}                                      what arrived, and which frames are there

A frame is sent again where the controller heard of the tick that carried it, and does not have it: that one was lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vla_robot.core.messages import Image, Observation


@dataclass
class FramesUnderWay:
    """The bridge's side: which frames one controller has, or will have soon.

    Attributes:
        sent: camera -> stamp [ns] of its last frame that went out, and the number of the tick that carried it.
        asked: whether the controller says what it has. One that does not gets every frame with every tick.
    """

    sent: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    asked: bool = False

    def acknowledge(self, seen: int, there: Mapping[str, int] | None) -> None:
        """Take note of what arrived.

        Args:
            seen: number of the newest tick that is there.
            there: camera -> stamp of the newest frame that is there [ns].
        """
        self.asked = there is not None
        held = there or {}
        self.sent = {n: (at, k) for n, (at, k) in self.sent.items() if k > seen or held.get(n) == at}

    def give_up(self, seen: int) -> None:
        """What is on its way beyond tick `seen` is taken for lost."""
        self.sent = {n: (at, k) for n, (at, k) in self.sent.items() if k <= seen}

    def pick(self, number: int, observation: Observation) -> Observation:
        """With the stamps of all cameras, and only the frames that have to travel in tick `number`."""
        stamps_ns = stamps_of(observation)
        if not self.asked:
            return replace(observation, stamps_ns=stamps_ns)
        new = [n for n in observation.images if n not in self.sent or self.sent[n][0] != stamps_ns[n]]
        self.sent.update({name: (stamps_ns[name], number) for name in new})
        return replace(observation, images={n: observation.images[n] for n in new}, stamps_ns=stamps_ns)


class NewestFrames:
    """The controller's side: the newest frame of each camera, and when it was captured."""

    def __init__(self) -> None:
        self._episode = 0
        self._frames: dict[str, tuple[Image, int]] = {}

    @property
    def stamps_ns(self) -> dict[str, int]:
        """Camera -> stamp of the frame that is here [ns]."""
        return {name: stamp_ns for name, (_, stamp_ns) in self._frames.items()}

    def complete(self, episode: int, observation: Observation) -> Observation | None:
        """An observation with the frames that did not travel with it.

        Where a frame was lost on the way, the one before it stands in, and its stamp says so.

        Args:
            episode: frames of another one are forgotten.
            observation: as it came; `stamps_ns` names all cameras.

        Returns:
            None while a camera has no frame here.
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
    """Camera -> when its frame was captured [ns]; where the observation does not say, all at once."""
    return {name: observation.stamps_ns.get(name, observation.stamp_ns) for name in observation.images}
