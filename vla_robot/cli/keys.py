"""`vla keys`: manages this computer's keys, the clients that its servers allow, and the servers that it trusts."""

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
    """also write the resulting names and public keys to this file as JSON"""


@dataclass(frozen=True)
class New(_Common):
    """Make a key for this computer. Its secret half stays in the folder."""

    name: Annotated[str, tyro.conf.Positional, option("NAME")]
    """name of this computer for others, e.g. "desk" """


@dataclass(frozen=True)
class Show(_Common):
    """Print a public key, for other computers."""

    name: Annotated[str | None, tyro.conf.Positional, option("NAME")] = None
    """the key's name; not needed if there is only one"""


@dataclass(frozen=True)
class Allow(_Common):
    """Let a client connect to servers on this computer, including those that run already."""

    public: Annotated[str, tyro.conf.Positional, option("PUBLIC | FILE")]
    """the client's public key, or the path of its .pub file"""
    name: Annotated[str | None, option("NAME")] = None
    """its name in logs; by default the name in the .pub file"""


@dataclass(frozen=True)
class Revoke(_Common):
    """Remove a client at once, also if it is connected."""

    name: Annotated[str, tyro.conf.Positional, option("NAME")]
    """as `vla keys list` shows it"""


@dataclass(frozen=True)
class Trust(_Common):
    """Trust servers on a host that prove to have this key."""

    host: Annotated[str, tyro.conf.Positional, option("HOST")]
    """as in the address tcp://HOST:PORT"""
    public: Annotated[str, tyro.conf.Positional, option("PUBLIC | FILE")]
    """the server's public key, or the path of its .pub file"""


@dataclass(frozen=True)
class Distrust(_Common):
    """Stop trusting servers on a host."""

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
    """Run the command of these arguments.

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
            say(f"'{args.name}' may no longer connect to servers on this computer.")
        case Trust():
            folder.trust(args.host, read_public(args.public)[0])
            say(f"Servers on {args.host} are trusted if they prove to have that key.")
        case Distrust():
            folder.trusted.remove(args.host)
            say(f"Servers on {args.host} are no longer trusted.")
        case List():
            _list(folder)
    if args.json:
        write_json(args.json, "keys", [], **_state(folder))
    return 0


def _new(folder: KeyFolder, name: str) -> None:
    keys = folder.create(name)
    say(f"{keys.public} {keys.name}")
    say(f"\nThis is the public key; a copy is in {short_path(folder.public_file(name))}.")
    say(f"Next, on the other computer: `vla keys allow {keys.public} --name {name}` if this one is the client, or")
    say(f"`vla keys trust HOST {keys.public}` if it is the server.")


def _allow(folder: KeyFolder, args: Allow) -> None:
    public, found = read_public(args.public)
    name = args.name or found
    if name is None:
        raise TransportError("this key has no name; give one with --name NAME.")
    folder.allow(public, name)
    say(f"'{name}' may connect to servers on this computer. `vla keys revoke {name}` removes it.")


def _list(folder: KeyFolder) -> None:
    for what, entries in _state(folder).items():
        for name, public in entries.items():
            say(f"{what:8} {public} {name}")
    say(f"\nThey are in {short_path(folder.path)}. `vla keys new NAME` makes one.")


def _state(folder: KeyFolder) -> dict[str, dict[str, Any]]:
    """Return name -> public key of each list; no secret keys."""
    return {
        "own": {name: folder.pair(name).public for name in folder.names()},
        "allowed": dict(folder.allowed.keys()),
        "trusted": dict(folder.trusted.keys()),
    }
