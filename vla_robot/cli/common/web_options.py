"""Options of every command that serves a page: where, and for whom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vla_robot.cli.common.cli_common import option
from vla_robot.core.errors import RecipeError

if TYPE_CHECKING:
    from vla_robot.web.server import Listen


BROWSER = "browser"
"""The device that is a page."""


@dataclass(frozen=True)
class PageArgs:
    """Where the page is served."""

    port: Annotated[int | None, option("PORT")] = None
    """of the page; 0 takes a free one, by default 8571 of vla view, 8572 of a page that drives"""
    host: Annotated[str | None, option("HOST")] = None
    """this computer's address for browsers, by default 127.0.0.1; another one, for a phone, needs --certificate"""
    certificate: Annotated[Path | None, option("FILE")] = None
    """PEM file, for a page that other computers may open; docs/bridge.md says how to make one"""
    certificate_key: Annotated[Path | None, option("FILE")] = None
    """PEM file of its key; by default it stands in the certificate's"""

    def __post_init__(self) -> None:
        if self.port is not None and not 0 <= self.port < 1 << 16:
            raise RecipeError(f"--port {self.port}: 1 to 65535, or 0 for a free one.")

    def listen(self, default_port: int) -> Listen:
        """
        Raises:
            TransportError: others could open the page, and there is no certificate.
        """
        from vla_robot.web.server import LOOPBACK, Listen

        port = default_port if self.port is None else self.port
        return Listen(port, self.host or LOOPBACK, self.certificate, self.certificate_key)

    def validate_options(self, device: str | None, hint: str) -> None:
        """Before anything is built: raise RecipeError where they were given and there is no page, and as `listen`."""
        if device == BROWSER:
            self.listen(0)
        elif self != PageArgs():
            raise RecipeError(f"--port, --host and --certificate are for a page in the browser; {hint}.")
