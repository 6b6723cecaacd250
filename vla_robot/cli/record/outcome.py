"""The JSON results of `vla record`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vla_robot.core.host.provenance import row
from vla_robot.record.collect import Collected


def results(made: Sequence[Collected], elapsed_s: float) -> dict[str, Any]:
    """Return the contents of `--json`."""
    successes = sum(event.success for event in made)
    numbers = [
        ("episodes", len(made), "1"),
        ("kept", sum(event.kept for event in made), "1"),
        ("frames", sum(event.steps for event in made if event.kept), "1"),
        ("time", elapsed_s, "s"),
    ]
    return {
        "rows": [row(*number) for number in numbers],
        "episodes": [{"seed": e.seed, "success": e.success, "steps": e.steps, "kept": e.kept} for e in made],
        "successes": successes,
        "success_rate": successes / len(made) if made else None,
    }
