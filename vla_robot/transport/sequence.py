"""Admits each command once, in the order they were sent, and only in the session they were sent in.

    client --hello-->  server        server: open() -> session, a random number that cannot be guessed
           <-session--
           --command, session, seq-->        admit(session, seq): seq must be higher than any before

CURVE already prevents other computers from replaying what they recorded. This keeps a command of an old session, of a
second client, or one that a proxy or a bug delivered twice, from moving the arm.

>>> guard = SequenceGuard()
>>> session = guard.open()
>>> guard.admit(session, 1)
>>> guard.admit(session, 1)
Traceback (most recent call last):
vla_robot.core.errors.TransportError: command 1 came before: it was replayed, and is not obeyed. ...
"""

from __future__ import annotations

import hmac
import secrets

from vla_robot.core.errors import SessionError, TransportError

SESSION_BYTES = 16

_REMEMBERED = 1024
"""Numbers below the highest whose arrival is known, to tell a replay from a late arrival."""


class SequenceGuard:
    """Checks the commands of one client, on the server's side."""

    def __init__(self) -> None:
        self._session = ""
        self._highest = 0
        self._came = 1  # bit k: whether the number k below the highest came; there is no command 0
        self.counts = {"replayed": 0, "reordered": 0, "forged": 0}
        """Number of commands refused so far, by reason, over all sessions."""

    def open(self) -> str:
        """Begin a session and end the one before, whose commands are refused from now on.

        Returns:
            The session: 32 hexadecimal digits to hand to this client alone.
        """
        self._session, self._highest, self._came = secrets.token_hex(SESSION_BYTES), 0, 1
        return self._session

    def close(self) -> None:
        """End the session; no command is admitted until the next one opens."""
        self._session = ""

    def admit(self, session: str, seq: int) -> None:
        """Return if the command may be executed.

        Args:
            session: session that the command states.
            seq: the command's number, from 1.

        Raises:
            SessionError: the session is not the open one; counted as "forged".
            TransportError: the command came before, or was overtaken.
        """
        if not self._session or not hmac.compare_digest(session.encode(), self._session.encode()):
            self.counts["forged"] += 1
            raise SessionError(
                f"command {seq} belongs to no session that is open here, and is not obeyed: the server was started "
                "anew, or has another client by now."
            )
        behind = self._highest - seq
        if behind < 0:
            self._came = ((self._came << -behind) | 1) & ((1 << _REMEMBERED) - 1) if -behind < _REMEMBERED else 1
            self._highest = seq
            return
        if behind < _REMEMBERED and not self._came >> behind & 1:
            # Marked, so that a second copy counts as replayed.
            self._came |= 1 << behind
            self.counts["reordered"] += 1
            raise TransportError(
                f"command {seq} came after command {self._highest}: it was overtaken on the way, and is not obeyed."
            )
        self.counts["replayed"] += 1
        raise TransportError(
            f"command {seq} came before: it was replayed, and is not obeyed. The highest so far is {self._highest}."
        )
