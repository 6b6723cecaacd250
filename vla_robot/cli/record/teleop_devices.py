"""Registry of teleoperation devices by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vla_robot.cli.common.web_options import BROWSER, PageArgs
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import RecipeError, closest, unknown
from vla_robot.core.ports import Teleoperator
from vla_robot.recipe import available, read
from vla_robot.recipe.reading.find import FORMER_FOLDERS
from vla_robot.recipe.reading.load import read_toml
from vla_robot.recipe.teleoperator import TeleoperatorRecipe

if TYPE_CHECKING:
    from vla_robot.teleop.motion import TeleopDevice

TELEOP_DEVICES = (BROWSER, "keyboard", "spacemouse", "gamepad")
"""Values of `--source` and `--takeover`, beside the names of recipes in envs/teleoperators/."""

PAGE_PORT = 8572
"""Default port of the page that drives."""


def open_named_teleoperator(
    name: str, embodiment: Embodiment, instruction: str, *, page: PageArgs | None = None, draws: bool = True
) -> Teleoperator:
    """Open the device of that name; the caller closes it.

    Args:
        name: one of TELEOP_DEVICES, or a recipe of envs/teleoperators/ by name or path.
        embodiment: embodiment of the driven arm.
        instruction: text that is shown until another one is typed.
        page: address of the page, if the device is one.
        draws: whether the device may draw its keys and counters on this terminal.

    Raises:
        RecipeError: there is no such device.
        ContractError: it cannot drive this arm.
        MissingDependencyError: it needs a package that is not installed.
        VlaError: it is absent or not permitted; the message says what to do.
    """
    if name == BROWSER:
        from vla_robot.web.browser_teleop import BrowserTeleop

        return BrowserTeleop(embodiment, instruction, (page or PageArgs()).listen(PAGE_PORT))
    if not is_teleoperator(name):
        raise RecipeError(unknown("device", name, [*TELEOP_DEVICES, *available("teleoperators")]))
    require_terminal_for(name)
    return _at_terminal(lambda: _motion(name, embodiment), instruction, draws)


def is_teleoperator(name: str) -> bool:
    """Return whether a device has that name: one of TELEOP_DEVICES, or a recipe of envs/teleoperators/, by name or
    path."""
    if name in TELEOP_DEVICES or name in available("teleoperators"):
        return True
    path = Path(name).expanduser()
    if path.suffix != ".toml" or not path.is_file():
        return False
    return path.parent.name in ("teleoperators", FORMER_FOLDERS["teleoperators"]) or _says_teleoperator(read_toml(path))


def require_terminal_for(name: str) -> None:
    """Raise TeleopError if the device needs a terminal and there is none; called before anything is built."""
    if name != BROWSER:
        from vla_robot.teleop.terminal import require_terminal

        require_terminal()


def refuse_misspelt_device(name: str) -> None:
    """Raise RecipeError for a name that is not a policy's and similar to a device's."""
    devices = [*TELEOP_DEVICES, *available("teleoperators")]
    if name not in available("policies") and not Path(name).exists() and closest(name, devices):
        raise RecipeError(unknown("device", name, devices))


def _says_teleoperator(table: Mapping[str, object]) -> bool:
    """Return whether a recipe is a device's: it has a kind, lerobot's name of the device, or inherits one."""
    if "kind" in table:
        return str(table["kind"]) in TeleoperatorRecipe.kinds.names()
    return "type" in table or str(table.get("base", "")) in available("teleoperators")


def _motion(name: str, embodiment: Embodiment) -> TeleopDevice:
    """Open the device that moves the tool, beside the terminal's buttons."""
    if name == "keyboard":
        from vla_robot.teleop.keys import KeyMotion

        return KeyMotion(embodiment)
    if name not in TELEOP_DEVICES:
        from vla_robot.teleop.kinds import open_teleoperator

        return open_teleoperator(read(TeleoperatorRecipe, name), embodiment)
    from vla_robot.teleop.sticks import StickMotion

    if name == "spacemouse":
        from vla_robot.teleop.spacemouse import open_spacemouse

        return StickMotion(open_spacemouse(), embodiment)
    from vla_robot.teleop.gamepad import open_gamepad

    return StickMotion(open_gamepad(), embodiment)


def _at_terminal(open_motion: Callable[[], TeleopDevice], instruction: str, draws: bool) -> Teleoperator:
    """Open a device and the keys of this terminal, which is restored if the device cannot be opened."""
    from vla_robot.teleop.panel import Panel
    from vla_robot.teleop.terminal import Terminal
    from vla_robot.teleop.terminal_teleop import TerminalTeleop

    motion = open_motion()
    panel = Panel() if draws and sys.stdout.isatty() else None
    return TerminalTeleop(motion, instruction, Terminal(), panel)


def welcome(teleop: Teleoperator) -> str:
    """Return what the person must know before driving, for the terminal; lines without a final newline."""
    from vla_robot.web.browser_teleop import BrowserTeleop

    if isinstance(teleop, BrowserTeleop):
        return (
            f"  {teleop.url}   drives: keep it to yourself\n  {teleop.watcher_url}   shows the same\n"
            "Open the first one, and press Start. Ctrl-C ends."
        )
    return "Type in this terminal: Enter starts an episode, Escape is the e-stop, Ctrl-C ends."
