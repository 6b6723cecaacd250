"""`vla data inspect`: prints the contents of a dataset, and draws two pictures of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.table import Table

from vla_robot.cli.common.cli_common import option, short_path
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.progress import Bar
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.core.errors import DataError
from vla_robot.core.host.durable import write_whole, writing
from vla_robot.core.host.provenance import row
from vla_robot.core.ports import EpisodeSource
from vla_robot.core.untrusted import MAX_NAME_CHARS
from vla_robot.data.formats.open import open_source
from vla_robot.data.formats.png import encode
from vla_robot.data.formats.recognise import facts_of, recipe_line
from vla_robot.data.summary import Dimension, Summary, contact_sheet, histograms, summarise

BARS = " ▁▂▃▄▅▆▇█"
MOST_INSTRUCTIONS = 8
NEXT = "Next: `vla data doctor PATH` finds its faults; `vla data convert` writes another format."


@dataclass(frozen=True)
class InspectArgs:
    """Show what a dataset contains, and draw a contact sheet of its cameras and histograms of its actions."""

    path: Annotated[str, tyro.conf.Positional, option("PATH")]
    """an RLDS or LeRobot folder, a robomimic HDF5 file or a folder of them, or the URL of an RLDS dataset"""
    split: Annotated[str, option("SPLIT")] = "train"
    """which part: train, val, train[:95%], all, ..."""
    episodes: Annotated[int, option("N")] = 200
    """number of episodes to read, evenly spread"""
    out: Annotated[Path | None, option("FOLDER")] = None
    """folder of the pictures; by default runs/inspect_NAME"""
    skip_corrupt: bool = False
    """skip damaged records instead of stopping at the first"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""


def main(args: InspectArgs) -> int:
    """Inspect a dataset.

    Raises:
        DataError: the path is no dataset, or it is damaged.
    """
    if args.episodes < 1:
        raise DataError(f"--episodes is {args.episodes}; at least 1 is needed.")
    console = Terminal()
    with Bar("shards indexed", console) as bar:
        source = open_source(args.path, args.split, skip_corrupt=args.skip_corrupt, on_progress=bar.update)
    with Bar("episodes read", console) as bar:
        summary = summarise(source, args.episodes, bar.update)
    _print_facts(source, summary, args, console)
    pictures = _draw(source, summary, args.out or Path("runs") / f"inspect_{source.name}")
    if args.json:
        write_json(args.json, "data inspect", _rows(source), **_details(source, summary))
    say(f"\nPictures: {', '.join(short_path(path) for path in pictures)}\n{NEXT}")
    return 0


def _print_facts(source: EpisodeSource, summary: Summary, args: InspectArgs, console: Terminal) -> None:
    splits = ", ".join(f"{name} {count}" for name, count in source.splits.items())
    lengths = source.lengths
    rate = "rate unknown" if source.rate_hz is None else f"{source.rate_hz:g} steps a second"
    console.print(f"{source.name}: {source.location}", soft_wrap=True)
    console.print(
        f"{args.split}: {len(source)} episodes of {lengths.min()} to {lengths.max()} steps (median "
        f"{np.median(lengths):g}), {lengths.sum()} in all, {rate}. Splits: {splits}.",
        soft_wrap=True,
    )
    for damaged in source.skipped:
        console.print(f"left out: {damaged}", soft_wrap=True)
    for line in (*source.notes, recipe_line(facts_of(source))):
        console.print(line, soft_wrap=True)
    console.print(_field_table(source))
    console.print(f"Instructions, of {summary.episodes_read} episodes:")
    for text, count in list(summary.instructions.items())[:MOST_INSTRUCTIONS]:
        console.print(f"  {count:>6}  {text or '(none)'}", soft_wrap=True)
    if len(summary.instructions) > MOST_INSTRUCTIONS:
        console.print(f"          and {len(summary.instructions) - MOST_INSTRUCTIONS} more")
    if summary.corrected is not None:
        console.print(
            f"Corrections: a person drove in the policy's place in {summary.corrected} steps, "
            f"in {summary.corrected_episodes} of these episodes.",
            soft_wrap=True,
        )
    console.print(_action_table(summary.actions))


def _field_table(source: EpisodeSource) -> Table:
    table = Table("field", "what", box=None, padding=(0, 2, 0, 0), title="Each step", title_justify="left")
    for name, field in source.fields.items():
        table.add_row(name, str(field))
    for name, field in source.metadata_fields.items():
        table.add_row(f"{name} (once an episode)", str(field))
    return table


def _action_table(dimensions: Sequence[Dimension]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title="Actions", title_justify="left")
    for name in ("number", "smallest", "1 %", "median", "99 %", "largest"):
        is_name = name == "number"  # the only one that may wrap
        table.add_column(name, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    table.add_column("how often", no_wrap=True)
    for dim in dimensions:
        table.add_row(dim.name, *(f"{value:.3g}" for value in dim.quantiles), _bars(dim.counts))
    return table


def _bars(counts: NDArray[np.int64]) -> str:
    """Return a histogram as one line, two bins per letter; a bin that is not empty is never blank."""
    counts = counts.reshape(-1, 2).sum(axis=1)
    levels = np.ceil(counts / counts.max() * (len(BARS) - 1)).astype(int)
    return "".join(BARS[level] for level in levels)


def _draw(source: EpisodeSource, summary: Summary, folder: Path) -> list[Path]:
    cameras = [name for name, field in source.fields.items() if field.kind == "image"]
    pictures = {f"frames_{_file_name(name)}.png": contact_sheet(source, name) for name in cameras}
    if summary.actions:
        pictures["actions.png"] = histograms(summary.actions)
    with writing(folder):
        for name, picture in pictures.items():
            write_whole(folder / name, encode(picture))
    return [folder / name for name in pictures]


def _file_name(field: str) -> str:
    """Return a field's last part, without characters that a file name should not have."""
    return re.sub(r"[^\w.-]", "_", field.rpartition("/")[2])[:MAX_NAME_CHARS]


def _rows(source: EpisodeSource) -> list[dict[str, Any]]:
    values = [("episodes", len(source)), ("frames", int(source.lengths.sum()))]
    return [row(name, value, "1") for name, value in values]


def _details(source: EpisodeSource, summary: Summary) -> dict[str, Any]:
    names = ("min", "q01", "median", "q99", "max")
    return {
        "fields": {name: str(field) for name, field in source.fields.items()},
        "splits": dict(source.splits),
        "rate_hz": source.rate_hz,
        "skipped": source.num_skipped,
        "episodes_read": summary.episodes_read,
        "instructions": dict(summary.instructions),
        "corrected_steps": summary.corrected,
        "corrected_episodes": summary.corrected_episodes if summary.corrected is not None else None,
        "actions": {dim.name: dict(zip(names, dim.quantiles, strict=True)) for dim in summary.actions},
    }
