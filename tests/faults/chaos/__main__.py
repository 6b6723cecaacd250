"""Randomly drawn faults over a running robot cell, and what the arm received of each.

    python tests/faults/chaos --faults 1000 --cells 4 --seed 1 --page docs/reliability.md

A cell is three real programs: `vla bridge` with an emulated arm, a policy server, and `vla run` between them. After
every fault these must hold: no command outside of the limits, the arm held within the configured time, the bridge alive
or ended by a supported stop. At the end every finished episode must be readable, and no process left. The status is 1
otherwise.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import check
import page
from cell import HOLD_AFTER_S, MAX_AGE_S, Cell, Program, eventually, processes_of
from faults import FAULTS, Fault

from vla_robot.core.errors import VlaError

PERIODS_S = 0.1
BRAKE_S = 1.0
"""The longest ramp to rest."""
BUSY_S = 0.5
"""Between a decision of the bridge and the journal's stamp, on a machine that is busy."""
ALLOWED_S = {"held": max(HOLD_AFTER_S, MAX_AGE_S) + PERIODS_S + BUSY_S, "stopped": BRAKE_S + BUSY_S}


@dataclass
class Tally:
    """What came of all faults of one kind."""

    count: int = 0
    moved_s: list[float] = field(default_factory=list[float])
    wrong: list[str] = field(default_factory=list[str])


class Chaos:
    """Faults in one cell, one after the other."""

    def __init__(self, cell: Cell, rng: Random, tallies: dict[str, Tally], say: Any) -> None:
        self._cell, self._rng, self._tallies, self._say = cell, rng, tallies, say
        self.ticks = self.moves = 0

    def run(self, faults: Sequence[Fault]) -> None:
        for number, fault in enumerate(faults, start=1):
            try:
                self._cell.drive()
                time.sleep(self._rng.uniform(0.0, 0.4))
                moved_s, wrong = self._suffer(fault)
            except (AssertionError, VlaError) as error:
                moved_s, wrong = None, [f"the cell had to be given up: {error}"]
                self._cell.abandon()
            tally = self._tallies[fault.name]
            tally.count += 1
            tally.wrong += wrong
            if moved_s is not None:
                tally.moved_s.append(moved_s)
            self._say(f"{number:4d} of {len(faults)}  {fault.name:40s} {'; '.join(wrong) or 'as it should be'}")
        entries = self._cell.journal()
        self.ticks = sum(e.what in ("command", "hold") for e in entries)
        self.moves = sum(e.moves for e in entries)

    def _suffer(self, fault: Fault) -> tuple[float | None, list[str]]:
        """Let it happen; for how long the arm still moved, where it must not, and what was wrong."""
        cell, bridge = self._cell, self._cell.bridge
        assert bridge is not None
        begun = len(cell.journal())
        fault.happen(cell, self._rng)
        at_ns = time.monotonic_ns()
        moved_s: float | None = None
        wrong: list[str] = []
        match fault.expected:
            case "held" | "stopped":
                time.sleep(ALLOWED_S[fault.expected] + 0.3)
                moved_s, wrong = check.held(cell.journal(), at_ns, ALLOWED_S[fault.expected])
            case "ends":
                wrong = self._ended(bridge, at_ns)
            case _:
                time.sleep(0.3)
        if fault.expected == "stopped" and (mode := cell.status()["mode"]) != "stopped":
            wrong.append(f"the bridge says '{mode}', not 'stopped'")
        if fault.expected not in ("ends", "dies") and not bridge.alive:
            wrong.append(f"the bridge ended with status {bridge.process.returncode}")
        fault.recover(cell)
        if fault.expected not in ("ends", "dies"):
            cell.drive()
            if cell.bridge is not bridge:
                wrong.append("the bridge had to be started anew")
        entries = cell.journal()[begun:]
        return moved_s, wrong + check.limits(_from_rest(entries), follows="fails" not in fault.name) + check.bursts(
            entries
        )

    def _ended(self, bridge: Program, at_ns: int) -> list[str]:
        eventually(lambda: not bridge.alive, "the bridge does not end")
        entries = self._cell.journal()
        status = bridge.process.returncode
        wrong = [] if status == 0 else [f"the bridge ended with status {status}"]
        return wrong + check.supported_end(entries) + check.held(entries, at_ns, ALLOWED_S["stopped"])[1]


def _from_rest(entries: Sequence[Any]) -> Sequence[Any]:
    """From the first moment at which the arm is known to rest at its beginning."""
    first = next((i for i, entry in enumerate(entries) if entry.what == "reset"), len(entries))
    return entries[first:]


def finish(cell: Cell) -> list[str]:
    """End the programs as a person would; what is left then."""
    for program in (cell.controller, cell.bridge, cell.policy):
        if program is not None:
            program.signal(signal.SIGTERM)
    left: list[int] = []

    def none_left() -> bool:
        left[:] = processes_of(cell.mark)
        return not left

    try:
        eventually(none_left, "processes are left", patience_s=60.0)
    except AssertionError:
        names = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in left]
        return [f"left running: {name}" for name in names]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100, help="how many, over all cells")
    parser.add_argument("--cells", type=int, default=1, help="how many cells side by side")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="faults whose name holds this text, each once for --faults 0")
    parser.add_argument("--keep", type=Path, help="a folder for what the cells write; by default it is removed")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--page", type=Path, help="renew the table of this page")
    args = parser.parse_args()
    signal.signal(
        signal.SIGHUP, signal.SIG_DFL
    )  # under nohup it is ignored, and so it would be by what is started here
    kinds = [fault for fault in FAULTS if args.only in fault.name]
    rng = Random(args.seed)
    drawn = [rng.choice(kinds) for _ in range(args.faults)] if args.faults else kinds
    with tempfile.TemporaryDirectory(prefix="chaos_") as temporary:
        result = suffer(drawn, args.cells, args.seed, args.keep or Path(temporary))
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.page:
        page.renew(args.page, result)
    return 1 if result["wrong"] else 0


def suffer(drawn: Sequence[Fault], cells: int, seed: int, folder: Path) -> dict[str, Any]:
    """All faults, over the cells, and what came of them."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    totals = {"ticks": 0, "moves": 0, "bridges": 0, "logs": 0, "cut_logs": 0}
    others: list[str] = []
    lock, begun = threading.Lock(), time.monotonic()

    def say(line: str) -> None:
        with lock:
            print(line, flush=True)

    def work(number: int) -> None:
        place = folder / f"cell_{number}"
        try:
            with Cell(place) as cell:
                chaos = Chaos(cell, Random(seed * 1000 + number), tallies, say)
                try:
                    chaos.run(drawn[number::cells])
                finally:
                    others.extend(finish(cell))
                    whole, cut, wrong = check.logs(place)
                    others.extend(wrong)
                    for name, value in (
                        ("ticks", chaos.ticks), ("moves", chaos.moves), ("bridges", cell.restarts),
                        ("logs", whole), ("cut_logs", cut),
                    ):  # fmt: skip
                        totals[name] += value
        except Exception as error:  # a fault of this program, or a cell that cannot go on: told like any other
            others.append(f"cell {number}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(cells)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    faults = {name: _row(tally) for name, tally in sorted(tallies.items())}
    wrong = [f"{name}: {text}" for name, tally in sorted(tallies.items()) for text in tally.wrong] + others
    minutes = (time.monotonic() - begun) / 60
    return {"drawn": len(drawn), "minutes": round(minutes, 1), **totals, "faults": faults, "wrong": wrong}


def _row(tally: Tally) -> dict[str, Any]:
    moved = sorted(tally.moved_s)
    times = {"moved_s_p50": round(moved[len(moved) // 2], 3), "moved_s_max": round(moved[-1], 3)} if moved else {}
    return {"count": tally.count, "wrong": len(tally.wrong), **times}


def show(result: Mapping[str, Any]) -> None:
    expected = {fault.name: fault.expected for fault in FAULTS}
    print(f"\n{'fault':42s}{'count':>6s}{'wrong':>7s}  {'arm':8s}  moved on, p50 / max")
    for name, row in result["faults"].items():
        moved = f"{row['moved_s_p50']:.2f} / {row['moved_s_max']:.2f} s" if "moved_s_max" in row else ""
        print(f"{name:42s}{row['count']:6d}{row['wrong']:7d}  {expected[name]:8s}  {moved}")
    print(
        f"\n{sum(row['count'] for row in result['faults'].values())} of {result['drawn']} faults in "
        f"{result['minutes']} minutes: {result['ticks']} ticks, {result['moves']} of them motions, "
        f"{result['bridges']} bridges, {result['logs']} finished logs, all read, {result['cut_logs']} cut short"
    )
    for text in result["wrong"]:
        print(f"WRONG  {text}")


if __name__ == "__main__":
    sys.exit(main())
