"""What lerobot's robots, cameras and teleoperators have in common: how one is found and told its fields."""

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

DEVICE_FAULTS = (OSError, RuntimeError, ValueError, IndexError, termios.error)
"""What lerobot, the servo library and pyserial raise when a cable, a motor or a frame is bad. IndexError: the servo
library reads past the end of an answer that was cut short."""


def drop_late_answers(port: Any) -> None:
    """The servo library takes whatever lies in the port for the answer to its newest question, so that one answer that
    came too late would leave every later one a question behind: a position where a temperature was asked. It calls
    clearPort before each question, which only waits until the last one is written."""

    def clear() -> None:
        port.ser.flush()
        port.ser.reset_input_buffer()

    port.clearPort = clear


def in_one_line(error: Exception) -> str:
    """A library's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def require_port(port: object, where: str) -> None:
    """
    Args:
        port: of a driver's fields; what is no path is the driver's own matter.
        where: the table of the recipe that names it.

    Raises:
        WorldError: there is no such port, or no permission to use it.
    """
    if not isinstance(port, str) or not port.startswith("/"):
        return
    if not Path(port).exists():
        there = sorted(str(p) for pattern in ("ttyACM*", "ttyUSB*", "tty.usb*") for p in Path("/dev").glob(pattern))
        raise WorldError(
            f"there is no port {port}. Available: {', '.join(there) or 'none: is the arm plugged in?'} "
            f"`lerobot-find-port` tells which one is the arm; write it to {where} port."
        )
    if not os.access(port, os.R_OK | os.W_OK):
        raise WorldError(
            f"no permission to use {port}. `sudo usermod -aG dialout $USER` and log in again, "
            f"or once only: `sudo chmod a+rw {port}`."
        )


def choice(registry: Any, noun: str, name: str, package: str, modules: Sequence[str]) -> type:
    """The configuration class that lerobot knows by a name, its own and those of installed plug-ins."""
    from lerobot.utils.import_utils import register_third_party_plugins

    for module in modules:
        with contextlib.suppress(ImportError):  # one that lacks its packages is not among the choices
            importlib.import_module(f"{package}.{module}")
    register_third_party_plugins()
    choices: Mapping[str, type] = registry.get_known_choices()
    if name not in choices:
        raise RecipeError(unknown(noun, name, choices))
    return choices[name]


def decoded(schema: type, fields: Mapping[str, Any], where: str) -> Any:
    """A configuration of lerobot's from plain values.

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
    except Exception as error:  # draccus and the dataclass' own checks raise many kinds
        raise RecipeError(f"{where}: {' '.join(str(error).split())}") from error
