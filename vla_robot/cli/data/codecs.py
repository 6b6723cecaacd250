"""`vla data fast` and `vla data rarest`: what a [codec] of a training needs of data: FAST's tokens, and free rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from vla_robot.cli.common.cli_common import option, short_path
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import say
from vla_robot.core.errors import DataError
from vla_robot.core.host.durable import write_whole, writing


@dataclass(frozen=True)
class FastArgs:
    """Train FAST's tokens on the chunks of demonstrations: for [codec] kind = "fast", tokenizer = "FILE"."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional, option("DATA")]
    """LeRobot datasets, those of the training"""
    chunk: Annotated[int, option("K")]
    """actions of an answer, the chunk of the training"""
    out: Annotated[Path, option("FILE")]
    """where to write the tokens, e.g. fast.json"""
    tokens: Annotated[int, option("N")] = 1024
    """size of the vocabulary; rare pairs get no token, so that it may be smaller"""
    scale: Annotated[float, option("X")] = 10.0
    """factor on coefficients before they are rounded: larger is more exact, and takes more tokens"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.tokens < 2 or not 0 < self.scale < np.inf:
            raise DataError(
                f"--chunk {self.chunk} --tokens {self.tokens} --scale {self.scale:g}: a chunk has at least 1 action, a "
                "vocabulary at least 2 tokens, and a scale is above 0."
            )


@dataclass(frozen=True)
class RarestArgs:
    """Count a corpus, and write which rows of a model's vocabulary it uses least: for [codec] rows_file = "FILE"."""

    model: Annotated[Path, tyro.conf.Positional, option("MODEL")]
    """a folder with tokenizer.json; its control tokens, <loc0000> and other added ones are never chosen"""
    corpus: Annotated[tuple[Path, ...], tyro.conf.Positional, option("TEXT")]
    """text files, one text a line"""
    out: Annotated[Path, option("FILE")]
    """where to write the rows, e.g. rows.json"""
    count: Annotated[int, option("N")] = 256
    """rows: 256 for bins, 256 for each number of an action by dimension, or as many as FAST has tokens"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""


def data_fast(args: FastArgs) -> int:
    """Train the tokens and measure them.

    Raises:
        VlaError: a dataset is absent or damaged, or its coefficients take more tokens than are asked for.
    """
    from vla_robot.policy.vla.codecs.fast_files import train_fast
    from vla_robot.policy.vla.json_files import write_json as write_plain

    chunks = _chunks(args.data, args.chunk)
    made = train_fast(chunks, args.tokens, args.scale)
    with writing(args.out):
        write_plain(args.out, made.to_dict())
    lengths, back = zip(*((len(said), made.actions(said)) for said in map(made.encode, chunks)), strict=True)
    error = np.abs(np.clip(back, -1, 1) - np.clip(chunks, -1, 1))
    _, K, D = chunks.shape
    say(f"{len(chunks)} chunks of {K} actions of {D} numbers")
    say(f"tokens       {len(made.tokens)}, for coefficients from {made.least} to {made.largest}")
    say(f"an answer    {np.mean(lengths):.1f} tokens, at most {max(lengths)}; with bins {K * D}")
    say(f"its error    {error.mean():.4f}, at most {error.max():.4f}, of a range of 2; with 256 bins at most 0.0039")
    say(f'{short_path(args.out)} holds them. Next: [codec] with kind = "fast", tokenizer = "{args.out}".')
    if args.json:
        row = {
            "chunks": len(chunks), "tokens": len(made.tokens), "tokens_mean": float(np.mean(lengths)),
            "tokens_max": max(lengths), "error_mean": float(error.mean()), "error_max": float(error.max()),
        }  # fmt: skip
        write_json(args.json, "data fast", [row])
    return 0


def data_rarest(args: RarestArgs) -> int:
    """Count the corpus and write the rows.

    Raises:
        VlaError: there is no tokenizer, a text cannot be read, or there are too few tokens to choose from.
    """
    from vla_robot.policy.vla.codecs.plan import count_rarest, write_rows
    from vla_robot.policy.vla.inputs.prompts import read_tokenizer

    ids, seen = count_rarest(read_tokenizer(args.model), _texts(args.corpus), args.count)
    with writing(args.out):
        write_whole(args.out, write_rows(ids).encode())
    used = int((seen > 0).sum())
    say(f"{len(ids)} rows from {ids[0]} to {ids[-1]}; {used} of them occur in the corpus, at most {seen.max()} times.")
    say(f'{short_path(args.out)} holds them. Next: [codec] with rows_file = "{args.out}".')
    if args.json:
        write_json(args.json, "data rarest", [{"rows": len(ids), "used": used, "most": int(seen.max())}])
    return 0


def _chunks(folders: tuple[Path, ...], chunk: int) -> NDArray[np.floating[Any]]:
    """Return (N, K, D) normalised actions of every step's answer, as a training has them."""
    from vla_robot.data.formats.lerobot.demo_dataset import open_demos
    from vla_robot.data.pipeline.mixture import Choices
    from vla_robot.data.pipeline.stats import dataset_statistics
    from vla_robot.data.pipeline.windows import Window
    from vla_robot.train.batches.data import datasets_of

    demos = open_demos(folders)
    statistics = dataset_statistics("demos", demos.actions, demos.states, len(demos.episodes))["demos"]
    choices = Choices(window=Window(future=chunk - 1), cameras=())
    every = np.ones(len(demos.episodes), dtype=np.bool_)
    parts = datasets_of(demos, "demos", choices, every, statistics)
    return np.stack([part.sample(step).actions for part in parts for step in range(len(part))])


def _texts(files: tuple[Path, ...]) -> list[str]:
    lines: list[str] = []
    for file in files:
        try:
            lines += file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file} cannot be read as text in UTF-8: {error}.") from error
    if not lines:
        raise DataError("the corpus holds no line of text, so that all rows would be equally rare.")
    return lines
