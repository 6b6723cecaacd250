"""Who may be at the controls, by name. The only list of a person's devices."""

from __future__ import annotations

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.teleop import Teleop

HANDS = ("browser",)
"""What `--by` and `--takeover` take."""

PAGE_PORT = 8572
"""Of the page that drives."""


def open_hands(
    name: str, embodiment: Embodiment, instruction: str, *, port: int = PAGE_PORT, draws: bool = True
) -> Teleop:
    """The device of that name, open; close it.

    Args:
        name: one of HANDS.
        embodiment: of the arm that is driven.
        instruction: shown until another one is typed.
        port: of the page, where the device is one; 0 takes a free one.
        draws: the device may draw its keys and counters on this terminal; False where something else is drawn there.

    Raises:
        RecipeError: there is no such device.
        ContractError: it cannot drive this arm.
        MissingDependencyError: it needs a package that is not installed.
        VlaError: it is not there, or not permitted; the message says what to do.
    """
    if name == "browser":
        from vla_robot.serve.browser_teleop import BrowserTeleop
        from vla_robot.serve.web import Listen

        return BrowserTeleop(embodiment, instruction, Listen(port))
    raise RecipeError(unknown("device", name, HANDS))


def welcome(teleop: Teleop) -> str:
    """What the person must know before they can drive, for the terminal; lines without an end."""
    from vla_robot.serve.browser_teleop import BrowserTeleop

    if isinstance(teleop, BrowserTeleop):
        return (
            f"  {teleop.url}   drives: keep it to yourself\n  {teleop.watcher_url}   shows the same\n"
            "Open the first one, and press Start. Ctrl-C ends."
        )
    return "Ctrl-C ends."
