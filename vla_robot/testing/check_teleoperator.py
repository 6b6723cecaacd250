"""The contract of a Teleoperator, and its check."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.ports import SharesControl, Teleoperator
from vla_robot.core.teleop import Button, TeleopCommand
from vla_robot.testing.contract import Contract, Sentence, closed_in_the_end, content, rest_action
from vla_robot.testing.embodiments import toy_observation

CONTRACT = Contract(
    "Teleoperator",
    {
        "commands": Sentence("command gives a TeleopCommand.", "Return TeleopCommand(None) while no person is there."),
        "is_action": Sentence(
            "Its action is None, or (D,) float64 within the limits of the action space.",
            "Build it with vla_robot.core.teleop_device.action_of, and give None while the device rests.",
        ),
        "is_buttons": Sentence(
            "Its buttons are a frozenset of the names in vla_robot.core.teleop.Button.",
            "Translate the device's own keys, and leave the others out.",
        ),
        "is_text": Sentence(
            "Its instruction is None, or what the person newly typed.", "Give a text once, and None from then on."
        ),
        "leaves_shown": Sentence("show does not change the observation.", "Copy a frame before you draw on it."),
        "told": Sentence(
            "A teleoperator that shares control can be told the driver before the arm moved: executed is None then.",
            "Keep the grip that you have when `executed` is None.",
        ),
        "closes": Sentence("close may be called twice.", "Let close return when the device was released before."),
    },
)
"""Sentences that `check_teleoperator` checks."""


def check_teleoperator(
    make_teleoperator: Callable[[], Teleoperator], embodiment: Embodiment, *, periods: int = 3
) -> None:
    """Check that a teleoperator keeps its contract: see CONTRACT, and `vla_robot.core.ports.Teleoperator`.

    Args:
        make_teleoperator: opens the device; the check closes it.
        embodiment: embodiment of the driven arm.
        periods: number of control periods; in each, an observation is shown and a command requested.

    Raises:
        BrokenContractError: a sentence does not hold; the message quotes it and says what to do.
    """
    with closed_in_the_end(make_teleoperator()) as teleoperator:
        _check_telling(teleoperator, embodiment)
        for step in range(periods):
            observation = toy_observation(embodiment, step, stamp_ns=1000 + step)
            before = content(observation)
            teleoperator.show(observation, {"episode": "1 of 1"})
            CONTRACT.require(content(observation) == before, "leaves_shown", "an array of the observation changed")
            _check_command(teleoperator.command(), embodiment)
        try:
            teleoperator.close()
            teleoperator.close()
        except Exception as error:
            CONTRACT.require(False, "closes", f"{type(error).__name__}: {error}")


def _check_telling(teleoperator: Teleoperator, embodiment: Embodiment) -> None:
    if not isinstance(teleoperator, SharesControl):
        return
    rest = rest_action(embodiment, toy_observation(embodiment).state)
    try:
        teleoperator.tell_driver("policy", None)
        teleoperator.tell_driver("person", rest)
    except Exception as error:
        CONTRACT.require(False, "told", f"{type(error).__name__}: {error}")


def _check_command(command: object, embodiment: Embodiment) -> None:
    if not isinstance(command, TeleopCommand):
        CONTRACT.require(False, "commands", f"a {type(command).__name__}")
        return
    _check_action(command.action, embodiment)
    is_buttons = isinstance(command.buttons, frozenset) and command.buttons <= set(get_args(Button))
    CONTRACT.require(is_buttons, "is_buttons", f"{command.buttons!r}")
    is_text = command.instruction is None or isinstance(command.instruction, str)
    CONTRACT.require(is_text, "is_text", f"{command.instruction!r}")


def _check_action(action: object, embodiment: Embodiment) -> None:
    space = embodiment.action
    if action is None:
        return
    if not isinstance(action, np.ndarray) or action.shape != (len(space),) or action.dtype != np.float64:
        CONTRACT.require(False, "is_action", f"{action!r}, where D is {len(space)}")
        return
    inside = bool(np.isfinite(action).all() and (space.low <= action).all() and (action <= space.high).all())
    CONTRACT.require(inside, "is_action", f"{action}, allowed is {space.low} to {space.high}")
