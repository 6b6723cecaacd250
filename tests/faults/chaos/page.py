"""The table of docs/reliability.md, from the figures of a run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from faults import FAULTS

from vla_robot.core.host.provenance import machine

BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"
RECEIVES = {
    "held": "nothing more; the pose is held, and stopped after 3 s",
    "stopped": "a ramp to rest, then its pose, until it is armed",
    "goes on": "its actions, within the limits",
    "ends": "a ramp to rest, `stop`, `close`",
    "dies": "nothing more; the motors keep the last goal",
}


def renew(path: Path, result: Mapping[str, Any]) -> None:
    """Replace what stands between the two marks of the page."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{table(result)}{END}{after}", encoding="utf-8")


def table(result: Mapping[str, Any]) -> str:
    """Markdown: one row a fault, and a line of totals."""
    lines = ["| fault | times | wrong | the arm receives | it still moved for, p50 / max |", "|---|---|---|---|---|"]
    for fault in FAULTS:
        if row := result["faults"].get(fault.name):
            moved = f"{row['moved_s_p50']:.2f} / {row['moved_s_max']:.2f} s" if "moved_s_max" in row else ""
            lines.append(f"| {fault.name} | {row['count']} | {row['wrong']} | {RECEIVES[fault.expected]} | {moved} |")
    count = sum(row["count"] for row in result["faults"].values())
    lines += [
        "",
        f"{count} faults in {result['minutes']:g} minutes, {len(result['wrong'])} of them with anything wrong: "
        f"{result['ticks']} ticks, {result['moves']} of them motions, {result['bridges']} bridges, {result['logs']} "
        f"finished logs that were all read, {result['cut_logs']} logs that a kill or a full disk cut short, no process "
        f"left. {machine()['cpu']}, {machine()['cores']} cores, {date.today():%d %B %Y}.",
    ]
    return "\n".join(lines) + "\n"
