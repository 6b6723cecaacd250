"""Writes the measured table of docs/gpu.md: `python -m benchmarks.gpu.page RESULT.json docs/gpu.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_robot.core.errors import DataError

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
COLUMNS = {
    "batch": "batch",
    "eager ms": "eager_ms",
    "blocks ms": "blocks_ms",
    "fused ms": "fused_ms",
    "towers": "fused_towers_ms",
    "prefill": "fused_prefill_ms",
    "decode": "fused_decode_ms",
    "passes": "passes",
    "transformers ms": "transformers_ms",
    "least ms": "floor_ms",
    "share": "of_floor",
    "actions/s": "actions_per_s",
    "peak GB": "peak_gb",
}
"""Column of the table -> number of a phase."""


def table_of(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the phases as Markdown: batches as a table, the others as a list."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for numbers in results.values():
        if "batch" in numbers:
            lines.append("| " + " | ".join(_shown(numbers.get(key)) for key in COLUMNS.values()) + " |")
    lines.append("")
    for phase, numbers in results.items():
        if "batch" not in numbers:
            lines.append(f"- {phase}: " + ", ".join(f"{k} {_shown(v)}" for k, v in numbers.items() if k != "where"))
    return "\n".join(lines)


def write_page(page: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace what is between the markers of a page.

    Raises:
        DataError: the page lacks the markers.
    """
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise DataError(f"{page} has no lines '{BEGIN}' and '{END}', between which the table is written.")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{table_of(results)}\n{END}{after}", encoding="utf-8")


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    write_page(Path(sys.argv[2]), json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["phases"])
