"""Summarises a dataset: quantiles of its actions, its instructions, a contact sheet and histograms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import INSTRUCTIONS, Field, OnProgress
from vla_robot.core.errors import DataError
from vla_robot.core.ports import EpisodeSource
from vla_robot.data.formats.lerobot.layout import INTERVENTION
from vla_robot.data.formats.source import ACTIONS

ACTION = "action"
BINS = 24
MOST_DIMENSIONS = 32
"""Largest number of dimensions of an action; a larger field, such as an embedding, is left out."""

CELL_PX = 112
GAP_PX = 2
HISTOGRAM_PX = (220, 96)
INK, PAPER, BAR = (40, 40, 40), (250, 250, 250), (70, 110, 170)


@dataclass(frozen=True)
class Dimension:
    """One dimension of the actions, over all steps that were read.

    Attributes:
        name: field and index, e.g. "action[3]".
        quantiles: smallest, 1 %, median, 99 %, largest.
        counts: (BINS,) number of steps in each of the bins between smallest and largest.
    """

    name: str
    quantiles: tuple[float, float, float, float, float]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Summary:
    """The summary of a dataset.

    Attributes:
        episodes_read: number of episodes that the numbers below are from.
        instructions: text -> number of episodes; "" for those without one.
        actions: every dimension of every action field.
        corrected: number of steps in which a person drove in a policy's place; None where the dataset does not say.
        corrected_episodes: number of episodes with such steps.
    """

    episodes_read: int
    instructions: Mapping[str, int]
    actions: tuple[Dimension, ...]
    corrected: int | None = None
    corrected_episodes: int = 0


def spread(count: int, most: int) -> list[int]:
    """Return up to `most` of the indices 0 to `count` - 1, evenly spread, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def summarise(source: EpisodeSource, most: int, on_progress: OnProgress = lambda done, total: None) -> Summary:
    """Summarise up to `most` episodes, evenly spread; frames are not read.

    Raises:
        DataError: the dataset is damaged, or empty.
    """
    if not len(source):
        raise DataError(f"{source.location} has no episode in this part.")
    actions = [name for name, field in source.fields.items() if _is_action(field)]
    texts = [name for name in INSTRUCTIONS if name in source.fields][:1]
    instructions: Counter[str] = Counter()
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in actions}
    marks = [INTERVENTION] if INTERVENTION in source.fields else []
    corrected: list[int] = []
    chosen = spread(len(source), most)
    for done, index in enumerate(chosen, start=1):
        episode = source.episode(index, [*actions, *texts, *marks])
        corrected += [int(episode.numbers(name).sum()) for name in marks]
        instructions[episode.told_in(texts[0])[0] if texts else ""] += 1
        for name in actions:
            columns[name].append(episode.numbers(name).reshape(len(episode), -1))
        on_progress(done, len(chosen))
    dims = [dim for name, parts in columns.items() for dim in _dimensions(name, np.concatenate(parts))]
    told = sum(corrected) if marks else None
    return Summary(len(chosen), dict(instructions.most_common()), tuple(dims), told, sum(n > 0 for n in corrected))


def contact_sheet(source: EpisodeSource, camera: str, episodes: int = 6, frames: int = 8) -> NDArray[np.uint8]:
    """Draw frames of one camera, with a row for each of some episodes, from its first step to its last.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: a frame is damaged.
    """
    import PIL.Image

    chosen = spread(len(source), episodes)
    pitch = CELL_PX + GAP_PX
    sheet = PIL.Image.new("RGB", (frames * pitch - GAP_PX, len(chosen) * pitch - GAP_PX), PAPER)
    for row, index in enumerate(chosen):
        film = source.episode(index, [camera]).frames(camera)
        for column, step in enumerate(spread(len(film), frames)):
            cell = PIL.Image.fromarray(_visible(film.decode(step)))
            cell.thumbnail((CELL_PX, CELL_PX))
            sheet.paste(cell, (column * pitch, row * pitch))
    return np.asarray(sheet)


def histograms(dimensions: Sequence[Dimension], columns: int = 4) -> NDArray[np.uint8]:
    """Draw one histogram for each dimension.

    Returns:
        (H, W, 3) uint8.
    """
    import PIL.Image
    import PIL.ImageDraw

    width, height = HISTOGRAM_PX
    rows = -(-len(dimensions) // columns)
    sheet = PIL.Image.new("RGB", (columns * width, max(rows, 1) * height), PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    for number, dim in enumerate(dimensions):
        left, top = number % columns * width, number // columns * height
        draw.text((left + 6, top + 2), dim.name, INK)
        draw.text((left + 6, top + height - 14), f"{dim.quantiles[0]:.3g} ... {dim.quantiles[-1]:.3g}", INK)
        _draw_bars(draw, dim.counts, left + 6, top + 16, width - 12, height - 32)
    return np.asarray(sheet)


def _draw_bars(draw: Any, counts: NDArray[np.int64], left: int, top: int, width: int, height: int) -> None:
    pitch = width / len(counts)
    for i, count in enumerate(counts.tolist()):
        if count:
            tall = max(round(height * count / counts.max()), 1)
            x = left + i * pitch
            draw.rectangle((x, top + height - tall, x + pitch - 2, top + height), BAR)


def _is_action(field: Field) -> bool:
    named = field.name in ACTIONS or field.name.startswith((f"{ACTION}/", f"{ACTION}.", f"{ACTION}_dict/"))
    size = int(np.prod([n or 0 for n in field.shape]))
    return named and field.kind == "number" and 0 < size <= MOST_DIMENSIONS


def _dimensions(name: str, values: NDArray[Any]) -> list[Dimension]:
    """Return the dimensions of one field with values (N, D)."""
    numbers = values.astype(np.float64)
    names = [name] if numbers.shape[1] == 1 else [f"{name}[{i}]" for i in range(numbers.shape[1])]
    return [_dimension(n, numbers[:, i]) for i, n in enumerate(names)]


def _dimension(name: str, values: NDArray[np.float64]) -> Dimension:
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise DataError(f"'{name}' holds no finite number.")
    low, q01, median, q99, high = np.quantile(finite, [0, 0.01, 0.5, 0.99, 1]).tolist()
    counts, _ = np.histogram(finite, BINS, (low, high if high > low else low + 1))
    return Dimension(name, (low, q01, median, q99, high), counts)


def _visible(frame: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a frame to display, (H, W, 3) uint8; depth becomes grey, near dark and far bright."""
    if frame.dtype == np.uint8:
        return frame
    depth = np.nan_to_num(frame[..., 0].astype(np.float64))
    scaled = 255 * (depth - depth.min()) / max(float(np.ptp(depth)), 1e-9)
    return np.repeat(scaled[..., None], 3, axis=2).astype(np.uint8)
