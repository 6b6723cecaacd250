"""Finds lerobot's classes of robots, cameras and teleoperators by name, and builds their configurations."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import termios
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_robot.core.errors import RecipeError, WorldError, unknown
from vla_robot.recipe.robot import RobotRecipe
from vla_robot.recipe.teleoperator import LerobotTeleoperatorRecipe

DEVICE_FAULTS = (OSError, RuntimeError, ValueError, IndexError, termios.error)
"""Errors of lerobot, the servo library and pyserial when a cable, a motor or a frame is bad. IndexError: the servo
library reads past the end of an answer that was cut short."""


def drop_late_answers(port: Any) -> None:
    """Discard bytes that arrived before each request of the servo library.

    The library takes all bytes in the port's buffer for the answer to its newest request. After one late answer, each
    later answer would belong to the request before: a position where a temperature was requested. The library calls
    clearPort before each request, which only waits until the last request is written.
    """

    def clear() -> None:
        port.ser.flush()
        port.ser.reset_input_buffer()

    port.clearPort = clear


def in_one_line(error: Exception) -> str:
    """Return a library's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def require_port(port: object, where: str) -> None:
    """Check that a serial port exists and may be used.

    Args:
        port: value of a driver's field; one that is no absolute path is not checked.
        where: the recipe's table that names it, for messages.

    Raises:
        WorldError: there is no such port, or no permission to use it.
    """
    if not isinstance(port, str) or not port.startswith("/"):
        return
    if not Path(port).exists():
        there = sorted(str(p) for pattern in ("ttyACM*", "ttyUSB*", "tty.usb*") for p in Path("/dev").glob(pattern))
        raise WorldError(
            f"there is no port {port}. Available: {', '.join(there) or 'none: is the arm plugged in?'} "
            f"`lerobot-find-port` finds the arm's port; write it to {where} port."
        )
    if not os.access(port, os.R_OK | os.W_OK):
        raise WorldError(
            f"no permission to use {port}. `sudo usermod -aG dialout $USER` and log in again, "
            f"or once only: `sudo chmod a+rw {port}`."
        )


def ports_as_options(of: str, fields: Mapping[str, Any]) -> str:
    """Return the ports of a recipe's fields as options of lerobot's commands, each after a space.

    Args:
        of: "robot" or "teleop".
        fields: the recipe's fields; a pair of arms has a table for each.
    """
    nested = {f"{name}.port": v["port"] for name, v in fields.items() if isinstance(v, dict) and "port" in v}
    ports = nested | ({"port": fields["port"]} if "port" in fields else {})
    return "".join(f" --{of}.{name}={port}" for name, port in ports.items())


def choice(registry: Any, noun: str, name: str, package: str, modules: Sequence[str]) -> type:
    """Return the configuration class that lerobot or an installed plug-in of it registers under a name.

    Args:
        registry: lerobot's base class, with `get_known_choices`.
        noun: the kind of thing, for messages.
        name: the wanted name.
        package: lerobot's package of the modules.
        modules: modules to import first, which register their classes.

    Raises:
        RecipeError: no class has that name.
    """
    from lerobot.utils.import_utils import register_third_party_plugins

    for module in modules:
        with contextlib.suppress(ImportError):  # a class whose packages are missing is not registered
            importlib.import_module(f"{package}.{module}")
    register_third_party_plugins()
    choices: Mapping[str, type] = registry.get_known_choices()
    if name not in choices:
        raise RecipeError(unknown(noun, name, choices))
    return choices[name]


def make_device(
    make: Callable[[Any], Any],
    schema: type,
    recipe: RobotRecipe | LerobotTeleoperatorRecipe,
    own: Mapping[str, Any],
    where: str,
) -> Any:
    """Return lerobot's object for a recipe, not connected yet. `own` holds fields that the recipe cannot set.

    Raises:
        RecipeError: a field is unknown, missing or of the wrong type, or a package is not installed.
    """
    known = {f.name for f in dataclasses.fields(schema)}
    own = {"id": recipe.id, **own}
    own |= {"calibration_dir": str(recipe.calibration_dir)} if recipe.calibration_dir else {}
    fields = {name: value for name, value in own.items() if name in known} | recipe.fields
    try:
        return make(decoded(schema, fields, where))
    except ImportError as error:
        raise RecipeError(f"lerobot's '{recipe.type}' needs a package that is not installed: {error}") from error


def decoded(schema: type, fields: Mapping[str, Any], where: str) -> Any:
    """Build a configuration of lerobot's from plain values.

    Raises:
        RecipeError: a field is unknown, missing or of the wrong type.
    """
    import draccus

    names = [f.name for f in dataclasses.fields(schema)]
    for name in fields:
        if name not in names:
            raise RecipeError(f"{where}: {unknown('field', name, names)}")
    decode: Callable[..., Any] = draccus.decode
    try:
        return decode(schema, dict(fields))
    except Exception as error:  # draccus and the dataclass' own checks raise many types
        raise RecipeError(f"{where}: {' '.join(str(error).split())}") from error
