"""Options of every command that serves a page: address and certificate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vla_robot.cli.common.cli_common import option
from vla_robot.core.errors import RecipeError

if TYPE_CHECKING:
    from vla_robot.web.server import Listen


BROWSER = "browser"
"""Name of the device that is a web page."""


@dataclass(frozen=True)
class PageArgs:
    """Address and certificate of the page."""

    port: Annotated[int | None, option("PORT")] = None
    """the page's port; 0 takes a free one, by default 8571 for vla view, 8572 for a page that drives"""
    host: Annotated[str | None, option("HOST")] = None
    """this computer's address for browsers, by default 127.0.0.1; another one, e.g. for a phone, needs --certificate"""
    certificate: Annotated[Path | None, option("FILE")] = None
    """PEM file, for a page that other computers may open; docs/bridge.md says how to make one"""
    certificate_key: Annotated[Path | None, option("FILE")] = None
    """PEM file of the certificate's key; by default the key is in --certificate"""

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
        """Raise RecipeError if page options were given without a page; raise as `listen` otherwise."""
        if device == BROWSER:
            self.listen(0)
        elif self != PageArgs():
            raise RecipeError(f"--port, --host and --certificate are options of a page in the browser; {hint}.")
