"""A result of `vla doctor`, about a computer or a robot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: subject of the check.
        seen: its result.
        verdict: "ok"; "warn", something works less well; "fail", something will not work.
        fix: what to do, or an empty string.
    """

    name: str
    seen: str
    verdict: Verdict = "ok"
    fix: str = ""
