"""The contract of a Robot, and its check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np

from vla_robot.core.messages import ActionChunk, Observation, Vector
from vla_robot.core.ports import ReportsStatus, Robot, StoppableRobot
from vla_robot.core.robot import Mode, Tick
from vla_robot.testing.contract import (
    FITS,
    INSTRUCTS,
    TRAVELS,
    Contract,
    Sentence,
    require_embodiment,
    small_action,
)

CONTRACT = Contract(
    "Robot",
    {
        "travels": TRAVELS,
        "instructs": INSTRUCTS,
        "fits": FITS,
        "begins": Sentence(
            "begin gives what is seen before the first tick, step 0.", "Clear the step counter in begin."
        ),
        "grows": Sentence(
            "Ticks come oldest first, and each has a larger step than the one before it.",
            "Number each tick by `result.observation.step`, and give each one once.",
        ),
        "holds": Sentence(
            "Where no action is due, the pose is held: the mode is not 'run', the reason says why, and cause_step is "
            "-1.",
            "Give mode 'hold' with a reason, and the pose's own action as `executed`.",
        ),
        "plays": Sentence(
            "An action that was sent is played: a tick of mode 'run' names its chunk in cause_step, and executed is "
            "the action, or has a Clamp.",
            "Play the row that is due, and copy the chunk's step into the tick.",
        ),
        "ends": Sentence(
            "end breaks the episode off: no action sent before it is played after it, and begin starts anew.",
            "Clear the queue of actions in end.",
        ),
        "latches": Sentence(
            "stop is an e-stop that stays pressed: no action is played after it. arm releases it, and begin starts "
            "anew.",
            "Keep the reason of the stop, and play nothing until arm clears it.",
        ),
        "reports": Sentence(
            "status gives a mode of vla_robot.core.robot.Mode and a reason, both in words.",
            "Return at least {'mode': ..., 'reason': ...}.",
        ),
    },
)
"""Sentences that `check_robot` checks."""


def check_robot(make_robot: Callable[[], Robot], *, seed: int = 1, patience: int = 50, timeout_s: float = 1.0) -> None:
    """Check that a robot keeps its contract: see CONTRACT, and `vla_robot.core.ports.Robot`.

    THE ARM MOVES a little. For a real one, keep the space around it free. The caller closes the robot.

    Args:
        make_robot: builds the robot, or returns one that is connected.
        seed: seed of the first episode.
        patience: number of calls of `ticks` within which an action must be played.
        timeout_s: timeout of each call [s].

    Raises:
        BrokenContractError: a sentence does not hold; the message quotes it and says what to do.
    """
    robot = make_robot()
    require_embodiment(CONTRACT, robot.embodiment, robot.instruction)
    for episode in range(2):
        first = robot.begin(seed + episode)
        CONTRACT.require_fit(robot.embodiment, first, "fits")
        CONTRACT.require(first.step == 0, "begins", f"step {first.step}")
        seen = _Seen(robot)
        before = seen.until(lambda ticks: bool(ticks), patience, timeout_s)
        CONTRACT.require(bool(before), "holds", f"no tick came in {patience} calls of ticks({timeout_s})")
        for tick in before:
            _require_held(tick)
        _check_plays(robot, seen, before[-1], patience, timeout_s)
        _check_status(robot)
        robot.end()
        _check_ended(robot, timeout_s, "ends")
    _check_stop(robot, seed, timeout_s)


class _Seen:
    """Receives the ticks of an episode, and checks their order."""

    def __init__(self, robot: Robot) -> None:
        self._robot = robot
        self._step = 0

    def until(self, enough: Callable[[Sequence[Tick]], bool], patience: int, timeout_s: float) -> list[Tick]:
        """Return the ticks that arrive until `enough`, or within `patience` calls."""
        came: list[Tick] = []
        for _ in range(patience):
            if enough(came):
                break
            came += self._take(timeout_s)
        return came

    def _take(self, timeout_s: float) -> list[Tick]:
        ticks = self._robot.ticks(timeout_s)
        for tick in ticks:
            step = tick.result.observation.step
            CONTRACT.require(step > self._step, "grows", f"step {step} after {self._step}")
            CONTRACT.require_fit(self._robot.embodiment, tick.result.observation, "fits")
            self._step = step
        return ticks


def _check_plays(robot: Robot, seen: _Seen, newest: Tick, patience: int, timeout_s: float) -> None:
    observation = newest.result.observation
    action = _send_small(robot, observation)

    def played(ticks: Sequence[Tick]) -> bool:
        return any(tick.mode == "run" for tick in ticks)

    ticks = seen.until(played, patience, timeout_s)
    CONTRACT.require(played(ticks), "plays", f"modes {[tick.mode for tick in ticks]}")
    for tick in ticks:
        if tick.mode != "run":
            _require_held(tick)
            continue
        CONTRACT.require(tick.cause_step == observation.step, "plays", f"cause_step {tick.cause_step}")
        CONTRACT.require_executed(robot.embodiment, action, tick.result, "plays")


def _send_small(robot: Robot, observation: Observation) -> Vector:
    """Send two equal rows of a small motion; return (D,) one of them."""
    action = small_action(robot.embodiment, observation.state)
    robot.send(ActionChunk(np.tile(action, (2, 1)), observation.stamp_ns, observation.step))
    return action


def _require_held(tick: Tick) -> None:
    is_held = tick.mode in get_args(Mode) and tick.mode != "run" and bool(tick.reason) and tick.cause_step == -1
    CONTRACT.require(is_held, "holds", f"mode '{tick.mode}', reason '{tick.reason}', cause_step {tick.cause_step}")


def _check_ended(robot: Robot, timeout_s: float, name: str) -> None:
    robot.ticks(0)  # those that were sent before the end
    late = [tick for tick in robot.ticks(timeout_s) if tick.mode == "run"]
    CONTRACT.require(not late, name, f"{len(late)} actions were played afterwards")


def _check_stop(robot: Robot, seed: int, timeout_s: float) -> None:
    if not isinstance(robot, StoppableRobot):
        return
    _send_small(robot, robot.begin(seed))
    robot.stop("a test")
    _check_ended(robot, timeout_s, "latches")
    robot.arm()
    first = robot.begin(seed)
    CONTRACT.require(first.step == 0, "latches", f"step {first.step} after arm and begin")
    robot.end()


def _check_status(robot: Robot) -> None:
    if isinstance(robot, ReportsStatus):
        status = robot.status()
        mode, reason = status.get("mode"), status.get("reason")
        in_words = mode in get_args(Mode) and isinstance(reason, str)
        CONTRACT.require(in_words, "reports", f"mode {mode!r}, reason {reason!r}")
