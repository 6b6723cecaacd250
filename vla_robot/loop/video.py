"""Writes episode logs as videos for any browser: cameras side by side over a caption bar."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from vla_robot.core.host.durable import TEMPORARY, make_folder, rename, sync_path, write_whole, writing
from vla_robot.core.host.optional import require
from vla_robot.core.image import resize
from vla_robot.core.messages import Image
from vla_robot.loop.results import EpisodeResult
from vla_robot.record.episode import EpisodeLog, frames_of

VIEW_HEIGHT = 448
"""Height of each camera's view [px]; frames of 224 px are doubled, so that the caption is sharp."""

BAR_HEIGHT = 64
HOLD_S = 1.0
"""Time for which the last frame is shown, with the outcome below it [s]."""

INK, PAPER, FAINT = (236, 240, 244), (22, 27, 34), (139, 148, 158)
OUTCOME_COLOURS = {"success": (63, 185, 80), "timeout": (210, 153, 34)}
FAILED_COLOUR = (248, 81, 73)


def write_video(log: EpisodeLog, result: EpisodeResult, path: Path, rate_hz: float) -> Path | None:
    """Write `path` (.mp4, H.264) and a poster beside it (.jpg), the last frame.

    Args:
        log: its frames are shown at the control rate; a dropped frame is replaced by the one before.
        result: gives the outcome.
        path: file to write.
        rate_hz: control steps per second of the robot's own time.

    Returns:
        The path, or None when the log holds no frames.

    Raises:
        MissingDependencyError: PyAV is not installed.
        DataError: writing failed.
    """
    pictures = list(_pictures(log, result))
    if not pictures:
        return None
    part = path.with_name(path.name + TEMPORARY)
    with writing(path):
        make_folder(path.parent)
        try:
            _encode(pictures + pictures[-1:] * round(HOLD_S * rate_hz), part, rate_hz)
            sync_path(part)
            write_whole(path.with_suffix(".jpg"), _poster(pictures[-1]))
            rename(part, path)
        finally:
            part.unlink(missing_ok=True)
    return path


def _pictures(log: EpisodeLog, result: EpisodeResult) -> Iterator[Image]:
    """Yield one composed picture per control step, from 0 to the one after the last."""
    instruction = str(log.header.get("instruction", ""))
    shown: Mapping[str, Image] | None = None
    by_step = dict(frames_of(log))
    for step in range(result.steps + 1):
        shown = by_step.get(step, shown)
        if shown:
            outcome = result.outcome if step == result.steps else None
            yield _compose(shown, instruction, step, outcome)


def _compose(images: Mapping[str, Image], instruction: str, step: int, outcome: str | None) -> Image:
    """Return (H, W, 3): the views in a row over the caption bar. Both sides are even, as H.264's 4:2:0 requires."""
    views = [
        resize(image, VIEW_HEIGHT, _even(image.shape[1] * VIEW_HEIGHT // image.shape[0])) for image in images.values()
    ]
    row = np.concatenate(views, axis=1)
    offsets = np.cumsum([0, *(view.shape[1] for view in views)])
    return _annotate(row, dict(zip(images, offsets.tolist(), strict=False)), instruction, step, outcome)


def _annotate(row: Image, labels: Mapping[str, int], instruction: str, step: int, outcome: str | None) -> Image:
    """Add the caption bar, and each camera's name at its left edge [px]."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    height, width = row.shape[:2]
    canvas = PIL.Image.new("RGB", (width, height + BAR_HEIGHT), PAPER)
    canvas.paste(PIL.Image.fromarray(row), (0, 0))
    draw = PIL.ImageDraw.Draw(canvas)
    large, small = PIL.ImageFont.load_default(size=28), PIL.ImageFont.load_default(size=22)
    for name, left in labels.items():
        draw.text((left + 14, 10), name, font=small, fill=INK, stroke_width=2, stroke_fill=PAPER)
    middle = height + BAR_HEIGHT // 2
    draw.text((16, middle), instruction, font=large, fill=INK, anchor="lm")
    status, colour = (f"step {step}", FAINT) if outcome is None else (f"{outcome}, {step} steps", _colour(outcome))
    draw.text((width - 16, middle), status, font=large, fill=colour, anchor="rm")
    draw.rectangle((0, height, width, height + 2), fill=colour)
    return np.asarray(canvas)


def _colour(outcome: str) -> tuple[int, int, int]:
    return OUTCOME_COLOURS.get(outcome, FAILED_COLOUR)


def _even(pixels: int) -> int:
    return pixels + pixels % 2


def _encode(pictures: list[Image], path: Path, rate_hz: float) -> None:
    require("av", "report", "the report's videos")
    import av

    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(rate_hz).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _poster(picture: Image) -> bytes:
    """Encode a picture as JPEG."""
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, "JPEG", quality=85)
    return file.getvalue()
