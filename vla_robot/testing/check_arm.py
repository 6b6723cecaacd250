"""The contract of an Arm, and its check."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from vla_robot.core.messages import Observation, StepResult
from vla_robot.core.ports import Arm, Streamed
from vla_robot.testing.contract import (
    FITS,
    INSTRUCTS,
    TIMES,
    TRAVELS,
    Contract,
    Sentence,
    closed_in_the_end,
    require_embodiment,
    rest_action,
    small_action,
)

CONTRACT = Contract(
    "Arm",
    {
        "travels": TRAVELS,
        "instructs": INSTRUCTS,
        "fits": FITS,
        "counts": Sentence(
            "reset gives step 0; each command and each hold is one tick and adds one.",
            "Set `Observation.step` from a counter that reset clears.",
        ),
        "executes": Sentence(
            "command executes the action; each number of `executed` that differs from it has a Clamp.",
            "Return what was really sent, and name each limit with `clamps_of`.",
        ),
        "holds": Sentence(
            "hold keeps the pose and the grip, and gives the action that keeps them as `executed`.",
            "Command the last goal again, with the gripper's last opening.",
        ),
        "looks": Sentence(
            "look reads only: nothing moves, and no tick passes.",
            "Read joints and cameras without sending a goal, and leave the step counter alone.",
        ),
        "cameras": Sentence(
            "camera_stamps_ns has positive stamps of the embodiment's cameras alone.",
            "Key it by the names in `embodiment.cameras`; leave a camera out that tells no stamp.",
        ),
        "times": TIMES,
        "streams": Sentence(
            "An arm that takes set points says when the next one is due, a positive stamp, and none earlier once that "
            "is sent.",
            "Keep the deadline by the bridge's clock, and move it on when a set point is sent.",
        ),
        "stops": Sentence(
            "stop may be called twice, and the pose is kept.", "Hold the present position with torque on."
        ),
        "closes": Sentence(
            "close ends the use of the arm without raising.", "Stop first, and release only what was opened."
        ),
    },
)
"""Sentences that `check_arm` checks."""


def check_arm(
    make_arm: Callable[[], Arm],
    *,
    seed: int = 1,
    ticks: int = 3,
    tolerance: float = 1e-6,
    inexact: ArrayLike = 0.0,
) -> None:
    """Check that an arm keeps its contract: see CONTRACT, and `vla_robot.core.ports.Arm`.

    THE ARM MOVES: home, a few small steps, and back to rest. For a real one, keep the space around it free. The check
    closes it at the end.

    Args:
        make_arm: builds the arm, connected.
        seed: seed of its reset.
        ticks: number of motions.
        tolerance: largest drift of a state that is held, in the units of the state.
        inexact: () or (D,) largest difference between `executed` and the action that needs no clamp, in the units of
            the action, such as the error of inverse kinematics.

    Raises:
        BrokenContractError: a sentence does not hold; the message quotes it and says what to do.
    """
    with closed_in_the_end(make_arm()) as arm:
        require_embodiment(CONTRACT, arm.embodiment, arm.instruction)
        observation = arm.reset(seed)
        _check_observation(arm, observation, 0)
        _check_set_points(arm)
        for tick in range(1, ticks + 1):
            action = small_action(arm.embodiment, observation.state)
            result = arm.command(action.copy())
            CONTRACT.require_executed(arm.embodiment, action, result, "executes", inexact)
            observation = result.observation
            _check_observation(arm, observation, tick)
            CONTRACT.require_stages(arm, "times")
        _check_hold(arm, ticks, tolerance)
        _check_look(arm, tolerance)
        _check_stop(arm, tolerance)
        try:
            arm.close()
        except Exception as error:
            CONTRACT.require(False, "closes", f"{type(error).__name__}: {error}")


def _check_observation(arm: Arm, observation: Observation, step: int) -> None:
    CONTRACT.require_fit(arm.embodiment, observation, "fits")
    CONTRACT.require(observation.step == step, "counts", f"step {observation.step} in the place of {step}")
    names = {camera.name for camera in arm.embodiment.cameras}
    stamps = dict(arm.camera_stamps_ns)
    sound = set(stamps) <= names and all(isinstance(ns, int) and ns > 0 for ns in stamps.values())
    CONTRACT.require(sound, "cameras", f"{stamps}, where the cameras are {sorted(names)}")


def _check_set_points(arm: Arm) -> None:
    if isinstance(arm, Streamed):
        due_ns = arm.next_set_point_ns
        arm.send_set_point()
        later_ns = arm.next_set_point_ns
        CONTRACT.require(0 < due_ns <= later_ns, "streams", f"due at {due_ns} ns, then at {later_ns} ns")


def _check_hold(arm: Arm, ticks: int, tolerance: float) -> None:
    """The second of two holds starts from an arm at rest."""
    closing_grip = rest_action(arm.embodiment, arm.look().state)
    closing_grip[-1] = arm.embodiment.action.low[-1]
    arm.command(closing_grip)
    first, second = arm.hold(), arm.hold()
    _check_observation(arm, second.observation, ticks + 3)
    for result in (first, second):
        _require_held(arm, result, float(closing_grip[-1]))
    drift = np.abs(second.observation.state - first.observation.state).max(initial=0.0)
    CONTRACT.require(bool(drift <= tolerance), "holds", f"the state moved by {drift:g} in one held tick")


def _require_held(arm: Arm, result: StepResult, grip: float) -> None:
    executed = result.executed
    if executed is None or executed.shape != (len(arm.embodiment.action),):
        CONTRACT.require(False, "holds", f"executed is {executed}")
        return
    CONTRACT.require(float(executed[-1]) == grip, "holds", f"the grip is {executed[-1]:g}, and was {grip:g}")


def _check_look(arm: Arm, tolerance: float) -> None:
    first, second = arm.look(), arm.look()
    CONTRACT.require_fit(arm.embodiment, second, "fits")
    CONTRACT.require(first.step == second.step, "looks", f"step {first.step}, then {second.step}")
    moved = np.abs(second.state - first.state).max(initial=0.0)
    CONTRACT.require(bool(moved <= tolerance), "looks", f"the state moved by {moved:g} between two looks")


def _check_stop(arm: Arm, tolerance: float) -> None:
    before = arm.look().state
    for time in ("first", "second"):
        try:
            arm.stop()
        except Exception as error:
            CONTRACT.require(False, "stops", f"the {time} stop raised {type(error).__name__}: {error}")
    moved = np.abs(arm.look().state - before).max(initial=0.0)
    CONTRACT.require(bool(moved <= tolerance), "stops", f"the state moved by {moved:g} while the arm was stopped")
