"""`vla data convert`: a dataset in another format."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vla_robot.cli.common.cli_common import EXIT_INTERRUPTED, option
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.progress import Bar
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.cli.data.on_cluster import Cluster, data_runner
from vla_robot.core.episode import OnProgress
from vla_robot.core.errors import DataError
from vla_robot.core.host.provenance import row
from vla_robot.core.ports import EpisodeSource, TaskRunner
from vla_robot.data.formats.conversion_metadata import Converted, Options
from vla_robot.data.formats.convert import Format, convert, without_nulls
from vla_robot.data.formats.lerobot.convert_tasks import to_lerobot_by_tasks
from vla_robot.data.formats.open import open_by
from vla_robot.data.formats.recognise import facts_of, recipe_line
from vla_robot.data.formats.rlds.convert_shards import to_rlds_shards
from vla_robot.data.formats.source import tell_left_out


@dataclass(frozen=True)
class ConvertArgs:
    """Write a dataset in another format. The same command continues an interrupted one."""

    source: Annotated[str, tyro.conf.Positional, option("SRC")]
    """an RLDS or LeRobot folder, a robomimic HDF5 file or a folder of them, or the URL of an RLDS dataset"""
    destination: Annotated[str, tyro.conf.Positional, option("DST")]
    """the new dataset's folder, or its URL (gs://, s3://, hf://, ...)"""
    to: Annotated[Format, option("{rlds,lerobot}")]
    """its format"""
    split: Annotated[str, option("SPLIT")] = "train"
    """which part: train, val, train[:95%], all, ..."""
    rate_hz: Annotated[float | None, option("HZ")] = None
    """steps per second, for LeRobot from RLDS, which does not store it"""
    instruction: Annotated[str | None, option("TEXT")] = None
    """the robot's instruction, for a source without one"""
    name: Annotated[str | None, option("NAME")] = None
    """name of the RLDS dataset; by default the folder's name"""
    skip_corrupt: bool = False
    """skip damaged records instead of stopping at the first"""
    cluster: Cluster = None
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""


def main(args: ConvertArgs) -> int:
    """Convert; status 130 after Ctrl-C.

    Raises:
        DataError: the source is damaged, the folder holds something else, or an option is needed.
    """
    if args.rate_hz is not None and args.rate_hz <= 0:
        raise DataError(f"--rate-hz is {args.rate_hz:g}; it must be above 0.")
    console = Terminal()
    started_s = time.monotonic()
    console.print(f"vla data convert: {args.source} ({args.split}) → {args.destination}", soft_wrap=True)
    options = Options(args.split, args.rate_hz, args.instruction, args.name)
    try:
        with data_runner(args.cluster, console) as runner:
            with Bar("shards indexed", console) as bar:
                source = open_by(runner, args.source, args.split, args.skip_corrupt, bar.update)
            with Bar("episodes", console) as bar:
                converted = _converted(args, source, options, runner, bar.update)
    except KeyboardInterrupt:
        say("\nInterrupted. The same command continues from here.")
        return EXIT_INTERRUPTED
    elapsed_s = time.monotonic() - started_s
    say(_closing(args, source, converted, elapsed_s))
    if args.json:
        rows = [
            row("episodes", converted.new, "1"),
            row("skipped", source.num_skipped, "1"),
            row("time", elapsed_s, "s"),
        ]
        write_json(args.json, "data convert", rows, lost=list(converted.lost))
    return 0


def _converted(
    args: ConvertArgs, source: EpisodeSource, options: Options, runner: TaskRunner, on_progress: OnProgress
) -> Converted:
    """Convert by tasks, or one episode after the other in this process."""
    if args.cluster is None and "://" not in args.destination:
        return convert(source, Path(args.destination), args.to, options, on_progress)
    if args.to == "rlds":
        return to_rlds_shards(without_nulls(source), args.destination, options, runner, on_progress)
    there = args.destination if "://" in args.destination else Path(args.destination).absolute()
    return to_lerobot_by_tasks(without_nulls(source), there, options, runner, on_progress)


def _closing(args: ConvertArgs, source: EpisodeSource, converted: Converted, elapsed_s: float) -> str:
    lines = [f"{converted.new} episodes in {elapsed_s:.1f} s; {args.destination} holds {converted.episodes}."]
    unread = tell_left_out(source.left_out)  # these are in `converted.lost` too
    lines += [note for note in source.notes if note not in unread]
    if source.num_skipped:
        lines.append(f"{source.num_skipped} damaged episodes were left out.")
    lines += [f"Lost: {line}." for line in converted.lost] or ["Nothing was lost."]
    lines.append(f"Actions and states were copied unchanged. {recipe_line(facts_of(source))}")
    if "://" in args.destination and args.to == "lerobot":  # which is read from folders alone
        return "\n".join([*lines, "Next: copy it to a folder, and `vla data inspect FOLDER`."])
    return "\n".join([*lines, f"Next: vla data inspect {args.destination}"])
