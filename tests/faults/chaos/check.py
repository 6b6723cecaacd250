"""What must hold after every fault, by the arm's own journal and by what lies on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arm import RANGE_M, RATE_HZ
from cell import Entry

from vla_robot.core.clock import NS_PER_S
from vla_robot.core.errors import VlaError
from vla_robot.record.episode import read_episode

MAX_STEP_M = 0.5 / RATE_HZ
MAX_STEP_CHANGE_M = 5.0 / RATE_HZ**2
WORKSPACE_M = 0.3
ROUNDING_M = 1e-9


def limits(entries: Sequence[Entry], follows: bool = True) -> list[str]:
    """Commands that broke a limit: range, speed, acceleration and, where the arm followed, the workspace.

    Args:
        entries: of the journal, from the beginning of an episode or from rest.
        follows: every command had its effect.
    """
    wrong: list[str] = []
    last, position = (0.0,) * 3, [0.0] * 3
    for entry in entries:
        if entry.what == "reset":
            position = [0.0] * 3
        if entry.what == "look":
            continue
        if entry.action is None:
            last = (0.0,) * 3
            continue
        step = entry.action[:3]
        position = [p + s for p, s in zip(position, step, strict=True)]
        changes = [abs(s - b) for s, b in zip(step, last, strict=True)]
        if not all(abs(s) <= RANGE_M for s in step) or not 0 <= entry.action[3] <= 1:
            wrong.append(f"outside of its range: {entry.action}")
        if max(map(abs, step)) > MAX_STEP_M + ROUNDING_M:
            wrong.append(f"too fast: {entry.action}")
        if max(changes) > MAX_STEP_CHANGE_M + ROUNDING_M:
            wrong.append(f"too sudden: {entry.action} after {last}")
        if follows and max(map(abs, position)) > WORKSPACE_M + ROUNDING_M:
            wrong.append(f"outside of the workspace: {position}")
        last = step
    return wrong


def held(entries: Sequence[Entry], since_ns: int, within_s: float) -> tuple[float, list[str]]:
    """How long the arm still moved [s], and what is wrong with that."""
    moves_s = [(e.at_ns - since_ns) / NS_PER_S for e in entries if e.moves and e.at_ns > since_ns]
    last_s = max(moves_s, default=0.0)
    return last_s, [f"moved {last_s:.2f} s later, {within_s:g} s are allowed"] if last_s > within_s else []


def supported_end(entries: Sequence[Entry]) -> list[str]:
    """Whether the last thing that the arm was told is to stop, supported, and then to be let go of."""
    told = [entry.what for entry in entries if entry.what != "look"]
    return [] if "stop" in told[-3:] and told[-1] == "close" else [f"ended with {told[-3:]}"]


def bursts(entries: Sequence[Entry]) -> list[str]:
    """Whether motions came in a burst. A late tick may be followed by one in time; ticks that were missed are not made
    up for."""
    moves = [entry.at_ns / NS_PER_S for entry in entries if entry.moves]
    quickest_s = min((third - first for first, third in zip(moves, moves[2:], strict=False)), default=1.0)
    return [f"three motions within {quickest_s * 1000:.1f} ms"] if quickest_s < 0.9 / RATE_HZ else []


def logs(folder: Path) -> tuple[int, int, list[str]]:
    """Finished logs that can be read, logs that a kill or a full disk cut short, and finished ones that are damaged."""
    whole, cut, wrong = 0, 0, []
    for path in sorted(folder.rglob("*.vlalog*")):
        if path.suffix != ".vlalog":
            cut += 1
            continue
        try:
            log = read_episode(path)
            if log.complete and log.damage is None:
                whole += 1
            else:
                wrong.append(f"{path.name} is finished and damaged: {log.damage}")
        except VlaError as error:
            wrong.append(f"{path.name} is finished and cannot be read: {error}")
    return whole, cut, wrong
