"""Pieces of HTML that the reports of a run and of an evaluation share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from vla_robot.core.host.durable import write_whole, writing
from vla_robot.loop.results import Outcome

REPORT = "report.html"
STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8").strip()


def video_path(folder: Path, seed: int) -> Path:
    """Return the path of an episode's video in the folder of its run; the poster is the .jpg beside it."""
    return folder / "videos" / f"seed_{seed}.mp4"


def interval_bar(rate: float, interval: tuple[float, float]) -> str:
    """Draw the rate as a dot on 0..100 %, its interval as a band."""
    low, high = interval
    return (
        f'<div class="interval"><i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
        f'<b style="left:{100 * rate:.1f}%"></b></div>'
    )


def video_element(folder: Path, video: Path) -> str:
    """Return the video with its poster; empty if there is no video."""
    if not video.is_file():
        return ""
    source, poster = relative(folder, video), relative(folder, video.with_suffix(".jpg"))
    return f'<video src="{source}" poster="{poster}" controls muted playsinline preload="none"></video>'


def badge(outcome: Outcome) -> str:
    """Return the outcome as a coloured word."""
    return f'<span class="badge {outcome}">{outcome}</span>'


def folded(parts: Sequence[tuple[str, str]]) -> str:
    """Return titles and HTML of parts, one below the other; the first is open."""
    return "".join(
        f"<details{' open' if k == 0 else ''}><summary>{escape(title)}</summary>{body}</details>"
        for k, (title, body) in enumerate(parts)
    )


def definitions(values: Mapping[str, object]) -> str:
    """Return a definition list of names and values."""
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape('none' if value is None else str(value))}</dd>"
        for name, value in values.items()
    )
    return f"<dl>{items}</dl>"


def percent(rate: float) -> str:
    return f"{100 * rate:.0f} %"


def relative(folder: Path, path: Path) -> str:
    """Return a link that stays valid when the folder is moved."""
    return escape(path.relative_to(folder).as_posix())


def write_page(folder: Path, summary: Mapping[str, Any], template: Path, fields: Mapping[str, str]) -> Path:
    """Write summary.json and, from a template, report.html, each atomically. Return the path of the latter.

    Raises:
        DataError: writing failed.
    """
    report = folder / REPORT
    page = Template(template.read_text(encoding="utf-8")).substitute({"style": STYLE, **fields})
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for path, content in ((folder / "summary.json", text), (report, page)):
        with writing(path):
            write_whole(path, content.encode())
    return report
