"""Output of `vla run` about its episodes, in a world here and behind a bridge."""

from __future__ import annotations

import contextlib
from pathlib import Path

from vla_robot.cli.common.cli_common import EXIT_FAILED, EXIT_INTERRUPTED
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.cli.run.progress_view import result_table
from vla_robot.core.errors import DataError
from vla_robot.evaluate.report_parts import REPORT
from vla_robot.loop.results import RunSummary
from vla_robot.recipe.launch import LaunchRecipe
from vla_robot.record.episode import PART_SUFFIX


def print_crashed(folder: Path) -> None:
    """Print where the episodes of an earlier run in the same folder are, which crashed."""
    if count := len(list(folder.glob(f"episodes/*{PART_SUFFIX}"))):
        say(f"  {count} episodes of a crashed run are in {folder / 'episodes'}, as *{PART_SUFFIX}", flush=True)


def rows_option(launch: LaunchRecipe) -> str:
    """Return the end of a command line that gives the launch's execution horizon; empty if it has none."""
    return "" if launch.rows is None else f" --rows {launch.rows}"


def device_option(device: str | None) -> str:
    """Return the end of a command line that names a device; empty without one."""
    return "" if device is None else f" --device {device}"


def print_notes(summary: RunSummary) -> None:
    for note in summary.notes:
        say(note, flush=True)


def print_finished(summary: RunSummary, folder: Path, file: Path | None) -> None:
    """Print the table of a run that a failure ended, and its finished episodes; write the same to `file` as JSON."""
    if summary.episodes:
        Terminal().print(result_table(summary))
        print_notes(summary)
        has_report = (folder / REPORT).exists()
        say(f"\nReport: {folder / REPORT}" if has_report else "\nThe report could not be written.")
        say(f"Finished episodes, saved in {folder / 'episodes'}: {len(summary.episodes)}.", flush=True)
    if file is not None:
        with contextlib.suppress(DataError):  # a full disk may have ended the run
            write_json(file, "run", **summary.to_dict())


def exit_status(summary: RunSummary) -> int:
    if summary.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if any(e.outcome == "error" for e in summary.episodes) else 0
