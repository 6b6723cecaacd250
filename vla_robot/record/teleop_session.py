"""Records demonstrations by a person, who starts, ends, keeps, discards and repeats episodes by a teleoperator.

    ready --start--> running --success, stop, or the world ends it--> kept, next
                        '----discard-----> discarded, next
                        '----rerecord----> discarded, the same again
                        '----estop-------> discarded, the same again after start

While the teleoperator gives no action the arm rests, and such a pause is not recorded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.ports import Teleoperator
from vla_robot.core.teleop import TeleopCommand
from vla_robot.data.demonstration import Demonstration, DemonstrationBuilder
from vla_robot.record.collect import Collected, Keep, Writer
from vla_robot.record.controlled_robot import Controllable, Transition

End = Literal["kept", "discarded", "again", "interrupted"]

RATE_STEPS = 20
"""Number of newest steps over which the displayed rate is measured."""

ENDS: dict[str, End] = {
    "success": "kept",
    "stop": "kept",
    "discard": "discarded",
    "rerecord": "again",
    "estop": "again",
}


@dataclass(frozen=True)
class Session:
    """A recording session.

    Attributes:
        driven: the arm.
        teleop: the person's device.
        writer: writes each kept episode at once.
        driver_name: name of the driver in the dataset.
        keep: "success" leaves out episodes that neither the world nor the person calls a success.
        image_size: edge in pixels to which frames are resized before they are stored; None keeps their size.
        clock: measures the displayed rate.
        on_event: called with the event of each ended episode.
    """

    driven: Controllable
    teleop: Teleoperator
    writer: Writer
    driver_name: str
    keep: Keep = "all"
    image_size: int | None = None
    clock: Clock = field(default_factory=MonotonicClock)
    on_event: Callable[[Collected], None] = lambda event: None

    def record(self, seeds: Iterator[int], episodes: int, should_stop: Callable[[], bool]) -> list[Collected]:
        """Record until enough episodes are kept, or `should_stop` returns True; a running episode is then discarded.

        Args:
            seeds: one for each episode that is begun for the first time.
            episodes: number of episodes to keep.
            should_stop: called on every tick.

        Returns:
            The events of all ended episodes, in order.

        Raises:
            DataError: an episode does not fit the dataset, or writing to disk failed. Written episodes stay.
            TeleopError: the device is gone. The arm holds, and finished episodes stay.
            WorldError: the arm fails, or was stopped.
            TransportError: no tick of the robot came for SILENCE_S.
        """
        made: list[Collected] = []
        seed = next(seeds)
        while sum(event.kept for event in made) < episodes:
            there = f"{sum(event.kept for event in made) + 1} of {episodes}"
            take = _Take(self, seed, there, should_stop)
            end, parts = take.run()
            if end == "interrupted":
                break
            made.append(self._store(seed, end, parts, take.steps))
            self.on_event(made[-1])
            seed = seed if end == "again" else next(seeds)
        return made

    def _store(self, seed: int, end: End, parts: Sequence[Demonstration], steps: int) -> Collected:
        """Write the parts of an episode that is to be kept; lost ticks cut it into parts, see DemonstrationBuilder."""
        if not parts or end != "kept":
            return Collected(seed, steps, False, False)
        kept = self.keep == "all" or parts[-1].succeeded
        for part in parts if kept else ():
            self.writer.write(part)
        return Collected(seed, steps, parts[-1].succeeded, kept)


class _Take:
    """One attempt at one episode."""

    def __init__(self, session: Session, seed: int, there: str, should_stop: Callable[[], bool]) -> None:
        self._session = session
        self._seed = seed
        self._there = there
        self._should_stop = should_stop
        self._builder = DemonstrationBuilder(session.image_size, in_background=True)
        self._lately_ns: deque[int] = deque(maxlen=RATE_STEPS)
        self._instruction: str | None = None
        self._success = False

    @property
    def steps(self) -> int:
        return len(self._builder)

    def run(self) -> tuple[End, Sequence[Demonstration]]:
        """Record the episode. Return how it ended, and its parts between gaps; none unless it is kept."""
        driven = self._session.driven
        if not self._started(driven.ready(self._seed)):
            return "interrupted", []
        observation = driven.begin(self._seed)
        try:
            end = self._driven(observation)
        finally:
            driven.end()
        return end, self._demonstrations() if end == "kept" else []

    def _demonstrations(self) -> list[Demonstration]:
        driven = self._session.driven
        made = self._builder.finish_parts(driven.embodiment, self._seed, self._session.driver_name)
        facts = {"unrecorded_steps": self._builder.dropped, **driven.facts}
        made = [replace(d, facts={**d.facts, **_true_rate(d.stamps_ns), **facts}) for d in made]
        if self._success and made:  # the person's success button: a real robot has no other success test
            made[-1].success[-1] = True
        return made

    def _started(self, observation: Observation) -> bool:
        """Wait for the start button; False when the session is to end."""
        while not self._should_stop():
            self._show(observation, "ready: press Start")
            buttons = self._command().buttons
            if "estop" in buttons:
                self._session.driven.stop()
            elif "start" in buttons:
                return True
            self._session.driven.pace()
        return False

    def _driven(self, observation: Observation) -> End:
        while not self._should_stop():
            said = self._command()
            observation = replace(observation, instruction=self._told(observation))
            if (end := self._ended_by(said)) is not None:
                return end
            advance = self._session.driven.advance(observation, self._wanted(said))
            observation = advance.observation
            self._add(advance.rows)
            self._show(observation, "recording" if said.action is not None else "paused: no person is at the controls")
            if advance.over:
                return "kept"
            self._session.driven.pace()
        return "interrupted"

    def _ended_by(self, said: TeleopCommand) -> End | None:
        """Return the end that the buttons ask for, e-stop first; None when they ask for none."""
        if "estop" in said.buttons:
            self._session.driven.stop()
            return ENDS["estop"]
        for button, end in ENDS.items():
            if button in said.buttons:
                self._success = button == "success"
                return end
        return None

    def _wanted(self, said: TeleopCommand) -> Vector | None:
        space = self._session.driven.embodiment.action
        return None if said.action is None else np.clip(said.action, space.low, space.high)

    def _add(self, rows: Sequence[Transition]) -> None:
        if not rows:
            self._lately_ns.clear()
        for row in rows:
            if row.after_gap:
                self._builder.cut()
            self._builder.add(row.before, row.action, row.result)
            self._lately_ns.append(self._session.clock.now_ns())

    def _command(self) -> TeleopCommand:
        said = self._session.teleop.command()
        self._instruction = said.instruction or self._instruction
        return said

    def _told(self, observation: Observation) -> str:
        """Return the instruction that the person typed last, or the world's own."""
        return self._instruction or observation.instruction

    def _show(self, observation: Observation, phase: str) -> None:
        counters = {
            "episode": self._there,
            "now": phase,
            "steps": str(self.steps),
            "rate": f"{self._rate_hz():.1f} Hz",
            "late ticks": str(self._session.driven.missed),
        }
        self._session.teleop.show(replace(observation, instruction=self._told(observation)), counters)

    def _rate_hz(self) -> float:
        """Return the rate of the newest steps since the last pause [Hz]."""
        if len(self._lately_ns) < 2:
            return 0.0
        elapsed_ns = self._lately_ns[-1] - self._lately_ns[0]
        return (len(self._lately_ns) - 1) * NS_PER_S / elapsed_ns if elapsed_ns else 0.0


def _true_rate(stamps_ns: NDArray[np.int64]) -> dict[str, float]:
    """Return the median rate over the steps [Hz], on which pauses have little effect."""
    if len(stamps_ns) < 2:
        return {}
    period_ns = float(np.median(np.diff(stamps_ns)))
    return {"rate_hz": round(NS_PER_S / period_ns, 2)} if period_ns > 0 else {}
