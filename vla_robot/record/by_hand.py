"""Demonstrations by a person: who holds the Teleop port starts, ends, keeps, forgets and repeats episodes.

    ready --start--> running --success, stop, or the world ends it--> kept, next
                        '----discard-----> forgotten, next
                        '----rerecord----> forgotten, the same again
                        '----estop-------> forgotten, the same again after start

The world waits while nobody is at the controls: such a pause is neither stepped nor recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock, Ticker
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.ports import World
from vla_robot.core.teleop import Teleop, TeleopCommand
from vla_robot.record.collect import Collected, Keep, Writer
from vla_robot.record.demonstration import Demonstration, DemonstrationBuilder

End = Literal["kept", "discarded", "again", "interrupted"]

ENDS: dict[str, End] = {
    "success": "kept",
    "stop": "kept",
    "discard": "discarded",
    "rerecord": "again",
    "estop": "again",
}


@dataclass(frozen=True)
class Session:
    """What a recording session needs.

    Attributes:
        world: what is driven; it waits between steps.
        teleop: the person.
        writer: gets every episode that is kept, at once.
        driver_name: who that is, as it is stored.
        keep: "success" leaves out episodes that neither the world nor the person calls one.
        image_size: edge in pixels to which frames are resized before they are stored; None keeps them.
        clock: paces the steps at the world's rate.
        on_event: told of each episode that ended.
    """

    world: World
    teleop: Teleop
    writer: Writer
    driver_name: str
    keep: Keep = "all"
    image_size: int | None = None
    clock: Clock = field(default_factory=MonotonicClock)
    on_event: Callable[[Collected], None] = lambda event: None

    def record(self, seeds: Iterator[int], episodes: int, should_stop: Callable[[], bool]) -> list[Collected]:
        """Record until so many episodes are kept, or `should_stop`; an episode that runs then is forgotten.

        Args:
            seeds: one for each episode that is begun for the first time.
            episodes: to keep.
            should_stop: asked on every tick.

        Raises:
            DataError: an episode does not fit the dataset, or the disk refuses. What was written stays.
            WorldError: the world fails.
        """
        made: list[Collected] = []
        seed = next(seeds)
        while sum(event.kept for event in made) < episodes:
            there = f"{sum(event.kept for event in made) + 1} of {episodes}"
            take = _Take(self, seed, there, should_stop)
            end, demonstration = take.run()
            if end == "interrupted":
                break
            made.append(self._store(seed, end, demonstration, take.steps))
            self.on_event(made[-1])
            seed = seed if end == "again" else next(seeds)
        return made

    def _store(self, seed: int, end: End, demonstration: Demonstration | None, steps: int) -> Collected:
        if demonstration is None or end != "kept":
            return Collected(seed, steps, False, False)
        kept = self.keep == "all" or demonstration.succeeded
        if kept:
            self.writer.write(demonstration)
        return Collected(seed, steps, demonstration.succeeded, kept)


class _Take:
    """One try at one episode."""

    def __init__(self, session: Session, seed: int, there: str, should_stop: Callable[[], bool]) -> None:
        self._session = session
        self._seed = seed
        self._there = there
        self._should_stop = should_stop
        self._builder = DemonstrationBuilder(session.image_size)
        self._ticker = self._fresh_ticker()
        self._began_ns = 0
        self._instruction: str | None = None
        self._success = False

    @property
    def steps(self) -> int:
        return len(self._builder)

    def run(self) -> tuple[End, Demonstration | None]:
        """How it ended, and the episode where there is one to keep."""
        observation = self._session.world.reset(self._seed)
        if not self._started(observation):
            return "interrupted", None
        self._began_ns, self._ticker = self._session.clock.now_ns(), self._fresh_ticker()
        end = self._driven(observation)
        if end != "kept" or not self.steps:
            return end, None
        demonstration = self._builder.finish(self._session.world.embodiment, self._seed, self._session.driver_name)
        return end, _called_success(demonstration) if self._success else demonstration

    def _fresh_ticker(self) -> Ticker:
        return Ticker(self._session.clock, round(NS_PER_S / self._session.world.embodiment.rate_hz))

    def _started(self, observation: Observation) -> bool:
        """Wait for the start button; False when the session is to end."""
        while not self._should_stop():
            self._show(observation, "ready: press Start")
            if "start" in self._command().buttons:
                return True
            self._ticker.wait()
        return False

    def _driven(self, observation: Observation) -> End:
        while not self._should_stop():
            said = self._command()
            observation = replace(observation, instruction=self._told(observation))
            for button, end in ENDS.items():
                if button in said.buttons:
                    self._success = button == "success"
                    return end
            over = False
            if said.action is not None:
                observation, over = self._step(observation, said.action)
            self._show(observation, "recording" if said.action is not None else "paused: nobody is at the controls")
            if over:
                return "kept"
            self._ticker.wait()
        return "interrupted"

    def _step(self, observation: Observation, action: Vector) -> tuple[Observation, bool]:
        space = self._session.world.embodiment.action
        wanted = np.clip(action, space.low, space.high)
        result = self._session.world.step(wanted)
        self._builder.add(observation, wanted, result)
        return result.observation, result.terminated or result.truncated

    def _command(self) -> TeleopCommand:
        said = self._session.teleop.command()
        self._instruction = said.instruction or self._instruction
        return said

    def _told(self, observation: Observation) -> str:
        """What the person typed for this episode, or the world's own."""
        return self._instruction or observation.instruction

    def _show(self, observation: Observation, phase: str) -> None:
        counters = {
            "episode": self._there,
            "now": phase,
            "steps": str(self.steps),
            "rate": f"{self._rate_hz():.1f} Hz",
            "late ticks": str(self._ticker.missed),
        }
        self._session.teleop.show(replace(observation, instruction=self._told(observation)), counters)

    def _rate_hz(self) -> float:
        """Of the steps since the episode began, pauses included."""
        elapsed_ns = self._session.clock.now_ns() - self._began_ns
        return self.steps * NS_PER_S / elapsed_ns if self._began_ns and elapsed_ns else 0.0


def _called_success(demonstration: Demonstration) -> Demonstration:
    """The person says that it is done: a robot of metal has no other test."""
    success = demonstration.success.copy()
    success[-1] = True
    return replace(demonstration, success=success)
