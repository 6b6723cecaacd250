"""`vla keys`: this computer's keys, which clients its servers let in, and which servers it trusts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from vla_robot.cli.common.cli_common import option, short_path
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import say
from vla_robot.core.errors import TransportError
from vla_robot.transport.keys import KeyFolder, read_public


@dataclass(frozen=True, kw_only=True)
class _Common:
    json: Annotated[Path | None, option("FILE")] = None
    """also write what is there afterwards to this file, for machines; never a secret key"""


@dataclass(frozen=True)
class New(_Common):
    """Make a key for this computer. Its secret half never leaves the folder."""

    name: Annotated[str, tyro.conf.Positional, option("NAME")]
    """what others will know this computer by, e.g. "desk" """


@dataclass(frozen=True)
class Show(_Common):
    """Print a public key, to give away."""

    name: Annotated[str | None, tyro.conf.Positional, option("NAME")] = None
    """whose; needless where there is only one"""


@dataclass(frozen=True)
class Allow(_Common):
    """Let a client connect to servers on this computer; servers that run already notice."""

    public: Annotated[str, tyro.conf.Positional, option("PUBLIC | FILE")]
    """the client's public key, or the path of its .pub file"""
    name: Annotated[str | None, option("NAME")] = None
    """what to call it in logs; without it, the name in the .pub file"""


@dataclass(frozen=True)
class Revoke(_Common):
    """Shut a client out again, at once, connected or not."""

    name: Annotated[str, tyro.conf.Positional, option("NAME")]
    """as `vla keys list` shows it"""


@dataclass(frozen=True)
class Trust(_Common):
    """Trust servers on a host, if they prove to own this key."""

    host: Annotated[str, tyro.conf.Positional, option("HOST")]
    """as in the address tcp://HOST:PORT"""
    public: Annotated[str, tyro.conf.Positional, option("PUBLIC | FILE")]
    """the server's public key, or the path of its .pub file"""


@dataclass(frozen=True)
class Distrust(_Common):
    """Trust servers on a host no longer."""

    host: Annotated[str, tyro.conf.Positional, option("HOST")]
    """as `vla keys list` shows it"""


@dataclass(frozen=True)
class List(_Common):
    """Show all keys of this computer, clients it allows and servers it trusts."""


KeysArgs = (
    Annotated[New, tyro.conf.subcommand("new")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Allow, tyro.conf.subcommand("allow")]
    | Annotated[Revoke, tyro.conf.subcommand("revoke")]
    | Annotated[Trust, tyro.conf.subcommand("trust")]
    | Annotated[Distrust, tyro.conf.subcommand("distrust")]
    | Annotated[List, tyro.conf.subcommand("list")]
)


def main(args: New | Show | Allow | Revoke | Trust | Distrust | List) -> int:
    """Do one of them.

    Raises:
        TransportError: a key or a name is unknown, taken or malformed.
    """
    folder = KeyFolder()
    match args:
        case New():
            _new(folder, args.name)
        case Show():
            keys = folder.pair(args.name)
            say(keys.public, keys.name)
        case Allow():
            _allow(folder, args)
        case Revoke():
            folder.allowed.remove(args.name)
            say(f"'{args.name}' is shut out of every server on this computer.")
        case Trust():
            folder.trust(args.host, read_public(args.public)[0])
            say(f"Servers on {args.host} are trusted if they prove to own that key.")
        case Distrust():
            folder.trusted.remove(args.host)
            say(f"No server on {args.host} is trusted any longer.")
        case List():
            _list(folder)
    if args.json:
        write_json(args.json, "keys", [], **_state(folder))
    return 0


def _new(folder: KeyFolder, name: str) -> None:
    keys = folder.create(name)
    say(f"{keys.public} {keys.name}")
    say(f"\nThis is the public key; a copy lies in {short_path(folder.public_file(name))}.")
    say(f"Next, on the other computer: `vla keys allow {keys.public} --name {name}` if this one is the client, or")
    say(f"`vla keys trust HOST {keys.public}` if it is the server.")


def _allow(folder: KeyFolder, args: Allow) -> None:
    public, found = read_public(args.public)
    name = args.name or found
    if name is None:
        raise TransportError("a key by itself has no name. Say whose it is with --name NAME.")
    folder.allow(public, name)
    say(f"'{name}' may connect to servers on this computer. `vla keys revoke {name}` takes it back.")


def _list(folder: KeyFolder) -> None:
    for what, entries in _state(folder).items():
        for name, public in entries.items():
            say(f"{what:8} {public} {name}")
    say(f"\nThey lie in {short_path(folder.path)}. `vla keys new NAME` makes one.")


def _state(folder: KeyFolder) -> dict[str, dict[str, Any]]:
    """What is there, name -> public key; no secrets."""
    return {
        "own": {name: folder.pair(name).public for name in folder.names()},
        "allowed": dict(folder.allowed.keys()),
        "trusted": dict(folder.trusted.keys()),
    }
