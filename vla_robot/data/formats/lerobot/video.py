"""Frames of LeRobot datasets that are no JPEG or PNG in a table: videos, and depth in videos or tables.

    wanted     0.000   0.108   0.200        the steps' timestamps, off by less than half a period of 0.1 s
    frames     0.000   0.100   0.200        the nearest frame is the step's frame

Depth is read in metres. LeRobot marks it in info.json; a camera that only its name calls depth is not read, since
nothing says what its pixels mean.

Source: huggingface/lerobot 0.6.1, datasets/{dataset_metadata,dataset_reader,depth_utils,image_writer,video_utils}.py.
"""

from __future__ import annotations

import functools
import io
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError
from vla_robot.core.host.optional import require
from vla_robot.core.untrusted import MALFORMED
from vla_robot.data.formats import png
from vla_robot.data.formats.bounds import MAX_COLUMN_BYTES, require_pixels
from vla_robot.data.formats.images import PNG_MAGIC, TIFF_MAGICS, picture_size, tiff_size

_LOG = logging.getLogger(__name__)

BLOCK = 64
"""Frames of a video that are decoded together: 59 MB at 480 x 640."""
BLOCK_BYTES = 2**27
MP4_MAGIC, MATROSKA_MAGIC = b"ftyp", b"\x1a\x45\xdf\xa3"
HALF, ONE_AND_A_HALF = 0.5, 1.5
DEPTH_BITS = 12
METRES_PER = {"m": 1.0, "mm": 1e-3}
COLOUR_WORDS = {"rgb", "color", "colour"}

Decoder = Literal["torchcodec", "pyav"]


@dataclass(frozen=True)
class DepthCode:
    """How depth is quantised to 12 bits in a video.

    Attributes:
        depth_min: metres at code 0.
        depth_max: metres at code 4095.
        shift: metres that are added before the logarithm.
        use_log: codes are even in the logarithm of depth, not in depth.
    """

    depth_min: float
    depth_max: float
    shift: float
    use_log: bool


@dataclass(frozen=True)
class VideoFrames:
    """Frames of one episode in a video file; decoded in blocks, since a video cannot be entered at every frame.

    Attributes:
        path: the video.
        timestamps: (T,) seconds from its beginning.
        stop_s: where the next episode begins in it; infinite for the last one.
        period_s: of a step.
        where: dataset, episode and field, for error messages.
        depth: how depth is coded; None for colour.
        shape: (H, W, C) as the dataset declares.
    """

    path: Path
    timestamps: tuple[float, ...]
    stop_s: float
    period_s: float
    where: str
    depth: DepthCode | None = None
    shape: tuple[int | None, ...] = ()

    def __len__(self) -> int:
        return len(self.timestamps)

    def encoded(self, step: int) -> bytes:
        return png.encode(self.decode(step))

    def decode(self, step: int) -> NDArray[Any]:
        block, place = divmod(range(len(self))[step], self.block)
        return _decode_block(self, block)[place]

    def check(self) -> None:
        """Raise DataError unless the video has a frame for each step; none is decoded."""
        _require_file(self)
        wanted, times = [_inside(t, self) for t in self.timestamps], _frame_times(self)
        after = np.clip(np.searchsorted(times, wanted), 1, max(len(times) - 1, 1))
        nearest = np.minimum(np.abs(times[after - 1] - wanted), np.abs(times[after % len(times)] - wanted))
        if (nearest >= HALF * self.period_s).any():
            _repeat_last_frame(self, wanted, 0)

    @property
    def block(self) -> int:
        """Frames that are decoded together: fewer of large ones, so that a block takes at most BLOCK_BYTES."""
        height, width = (self.shape[0] or 1, self.shape[1] or 1) if len(self.shape) == 3 else (1, 1)
        return max(min(BLOCK, BLOCK_BYTES // (3 * height * width)), 1)


@dataclass(frozen=True)
class DepthImages:
    """Depth in a table: one TIFF or PNG of one channel a step.

    Attributes:
        files: one per step.
        unit: of the stored values, "m" or "mm".
        shape: (H, W, 1) as the dataset declares.
        where: dataset, episode and field, for error messages.
    """

    files: Sequence[bytes]
    unit: str
    shape: tuple[int | None, ...]
    where: str

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, step: int) -> bytes:
        return png.encode(self.decode(step))

    def decode(self, step: int) -> NDArray[np.float32]:
        import PIL.Image

        where, data = f"{self.where}, step {step}", self.files[step]
        is_tiff = data.startswith(TIFF_MAGICS)
        size = tiff_size(data, where) if is_tiff else picture_size(data) if data.startswith(PNG_MAGIC) else None
        if size is None:
            raise DataError(f"{where}: the depth image is no TIFF or PNG, or a damaged one ({len(data)} bytes).")
        require_pixels(*size, self.shape, where)
        try:
            image = PIL.Image.open(io.BytesIO(data), formats=("TIFF" if is_tiff else "PNG",))
            values = np.asarray(image, dtype=np.float32)
        except (OSError, SyntaxError, PIL.Image.DecompressionBombError, *MALFORMED) as error:
            raise DataError(f"{where}: the depth image is damaged: {error}.") from error
        if values.ndim != 2:
            raise DataError(f"{where}: the depth image has {values.shape[2:]} channels instead of 1.")
        return values[..., None] * np.float32(METRES_PER[self.unit])

    def check(self) -> None:
        for step in range(len(self)):
            self.decode(step)


def is_depth(name: str, feature: Mapping[str, Any]) -> bool:
    """The camera gives depth, by its description or by its name."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return _is_marked(feature) or ("depth" in words and not words & COLOUR_WORDS)


def why_not_depth(feature: Mapping[str, Any]) -> str:
    """Why a depth camera cannot be read in metres; empty when it can."""
    if not _is_marked(feature):
        return "a camera that its name calls depth and info.json does not (is_depth_map)"
    if feature["dtype"] == "image":
        unit = _info(feature).get("depth_unit")
        return "" if unit in METRES_PER else f"a depth image whose depth_unit in info.json is {unit!r}, not 'm' or 'mm'"
    return "" if depth_code(feature) else "a depth video without depth_min, depth_max, shift and use_log in info.json"


def depth_code(feature: Mapping[str, Any]) -> DepthCode | None:
    """How a depth video is coded; None when info.json does not say."""
    info = _info(feature)
    numbers = [info.get(f"video.{name}") for name in ("depth_min", "depth_max", "shift")]
    use_log = info.get("video.use_log")
    values = [float(n) for n in numbers if isinstance(n, (int, float)) and math.isfinite(n)]
    if len(values) != len(numbers) or not isinstance(use_log, bool):
        return None
    low, high, shift = values
    return None if low >= high or (use_log and low + shift <= 0) else DepthCode(low, high, shift, use_log)


def depth_unit(feature: Mapping[str, Any]) -> str:
    """Of the values of a depth image."""
    return str(_info(feature)["depth_unit"])


def _info(feature: Mapping[str, Any]) -> Mapping[str, Any]:
    return feature.get("info") or feature.get("video_info") or {}


def _is_marked(feature: Mapping[str, Any]) -> bool:
    blocks = [feature.get("info") or {}, feature.get("video_info") or {}]
    return any(block.get("is_depth_map") or block.get("video.is_depth_map") for block in blocks)


@functools.lru_cache(maxsize=4)
def _decode_block(frames: VideoFrames, block: int) -> NDArray[Any]:
    """(up to BLOCK, H, W, 3) uint8, or (..., 1) float32 metres.

    Some blocks are kept, so that reading step by step decodes once.

    Raises:
        DataError: the video is missing or damaged, or has no frame near a step.
    """
    require("lerobot", "data", f"decoding {frames.path}")
    _require_file(frames)
    first = block * frames.block
    wanted = [_inside(t, frames) for t in frames.timestamps[first : first + frames.block]]
    decoded = _decode(frames, wanted)
    if decoded is None:
        decoded = _decode(frames, _repeat_last_frame(frames, wanted, first))
    if decoded is None:
        raise DataError(f"{frames.where}: the video {frames.path} has no frame near a step from step {first} on.")
    return decoded


def _require_file(frames: VideoFrames) -> None:
    """Raise DataError for a video that is missing, or that FFmpeg would take for a playlist.

    A playlist names other files and addresses, and FFmpeg opens them.
    """
    if not frames.path.is_file():
        raise DataError(f"{frames.where}: the video {frames.path} is missing.")
    with frames.path.open("rb") as file:
        start = file.read(12)
    if start[4:8] != MP4_MAGIC and not start.startswith(MATROSKA_MAGIC):
        raise DataError(
            f"{frames.where}: the video {frames.path} is neither MP4 nor Matroska: it begins with {start!r}."
        )


def _inside(time_s: float, frames: VideoFrames) -> float:
    """Videos stand one behind the other in a file: what is wanted past the end is not the next episode's first frame.

    Raises:
        DataError: the video is more than one frame too short.
    """
    over = (time_s - frames.stop_s) / frames.period_s
    if over < -HALF:
        return time_s
    if over < HALF:
        _say_short(frames.where)
        return frames.stop_s - frames.period_s
    step = frames.timestamps.index(time_s)
    raise DataError(f"{frames.where}: the video ends at {frames.stop_s:.3f} s, but step {step} is at {time_s:.3f} s.")


def _decode(frames: VideoFrames, wanted: list[float]) -> NDArray[Any] | None:
    """The frames nearest to some times; None when one is half a period away from all."""
    from av.error import FFmpegError
    from lerobot.datasets.depth_utils import dequantize_depth
    from lerobot.datasets.video_utils import FrameTimestampError, decode_video_frames

    code, tolerance_s = frames.depth, HALF * frames.period_s
    is_coded = code is not None
    try:
        _require_decodable(frames, wanted)
        tensor = decode_video_frames(
            frames.path, wanted, tolerance_s, video_decoder(), return_uint8=True, is_depth=is_coded
        )
    except (FrameTimestampError, IndexError):  # torchcodec has no frame of that index
        return None
    except (RuntimeError, OSError, FFmpegError, *MALFORMED) as error:
        raise DataError(f"{frames.where}: the video {frames.path} cannot be decoded: {error}.") from error
    pixels = tensor.numpy()
    if code is None:
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    low, high, shift, use_log = code.depth_min, code.depth_max, code.shift, code.use_log
    metres = dequantize_depth(pixels, low, high, shift, use_log, output_unit="m", output_tensor=False)
    return np.ascontiguousarray(np.asarray(metres).transpose(0, 2, 3, 1))


def _require_decodable(frames: VideoFrames, wanted: Sequence[float]) -> None:
    """Look at a video's header and packets before memory is taken for its frames.

    Raises:
        DataError: its frames are larger than declared or allowed; a depth video has not the 12 bits that its codes
            need; or so many frames lie between the key frame before the wanted ones and the last of them, all of which
            the decoder holds at once, that they take more than MAX_COLUMN_BYTES.
    """
    import av

    with av.open(str(frames.path)) as container:
        stream = container.streams.video[0]
        pixels = stream.pix_fmt or "unknown pixels"
        if frames.depth is not None and f"{DEPTH_BITS}le" not in pixels:
            raise DataError(f"{frames.where}: the depth video {frames.path} holds {pixels}, not {DEPTH_BITS} bits.")
        require_pixels(stream.width, stream.height, frames.shape, f"{frames.where}: the video {frames.path}")
        period_s = float(stream.time_base or 0)
        if not period_s > 0:
            raise DataError(f"{frames.where}: the video {frames.path} does not say what its times mean.")
        most = MAX_COLUMN_BYTES // max(3 * stream.width * stream.height, 1)
        container.seek(round(min(wanted) / period_s) - 1, stream=stream)
        for count, packet in enumerate(container.demux(stream)):
            if packet.dts is not None and packet.dts * period_s > max(wanted):
                return
            if count > most:
                raise DataError(
                    f"{frames.where}: the video {frames.path} has more than {most} frames of {stream.width} x "
                    f"{stream.height} pixels from one key frame to a step. Encode it again with more key frames."
                )


def _repeat_last_frame(frames: VideoFrames, wanted: list[float], first: int) -> list[float]:
    """The same times, where the last step of a video that is one frame short gets the frame before.

    Raises:
        DataError: more is missing than the last frame.
    """
    times, period_s = _frame_times(frames), frames.period_s
    last_s = float(times[-1])
    far = [i for i, t in enumerate(wanted) if np.abs(times - t).min() >= HALF * period_s]
    is_last = far == [len(wanted) - 1] and first + len(wanted) == len(frames)
    if not is_last or wanted[-1] - last_s >= ONE_AND_A_HALF * period_s:
        step = first + (far[0] if far else 0)
        raise DataError(
            f"{frames.where}: the video {frames.path} has no frame within half a period ({HALF * period_s:.4f} s) of "
            f"each step from step {step} (at {wanted[step - first]:.4f} s) on; its last frame is at {last_s:.4f} s."
        )
    _say_short(frames.where)
    return [*wanted[:-1], last_s]


def _frame_times(frames: VideoFrames) -> NDArray[np.float64]:
    """Times of all frames of the video file, in order.

    Raises:
        DataError: it is damaged, or has no frame.
    """
    from av.error import FFmpegError

    try:
        times = _packet_times(frames.path, frames.path.stat().st_mtime_ns)
    except (RuntimeError, OSError, FFmpegError, *MALFORMED) as error:
        raise DataError(f"{frames.where}: the video {frames.path} cannot be read: {error}.") from error
    if not len(times):
        raise DataError(f"{frames.where}: the video {frames.path} has no frame.")
    return times


@functools.lru_cache(maxsize=16)
def _packet_times(path: Path, changed_ns: int) -> NDArray[np.float64]:
    """Times of all frames, in order; the packets are read, and none is decoded."""
    import av

    container = av.open(str(path))
    stream = container.streams.video[0]
    stamps = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
    container.close()
    return np.sort(np.array(stamps, dtype=np.float64)) * float(stream.time_base or 0)


@functools.cache
def _say_short(where: str) -> None:
    _LOG.warning("%s: the video is one frame short; its last step has the frame of the step before", where)


@functools.cache
def video_decoder() -> Decoder:
    """What decodes videos here. A line is logged when it is not torchcodec.

    lerobot would choose the same, and print all that torchcodec tried, some hundred lines.
    """
    try:
        import torchcodec
    except ImportError:
        _say_decoder("torchcodec is not installed")
        return "pyav"
    except (OSError, RuntimeError):
        _say_decoder("torchcodec finds no FFmpeg; with FFmpeg 4 to 8 installed it decodes faster")
        return "pyav"
    return "torchcodec" if torchcodec else "pyav"


def _say_decoder(why: str) -> None:
    """Once: not by each of the processes that load batches."""
    from torch.utils.data import get_worker_info

    worker = get_worker_info()
    if worker is None or worker.id == 0:
        _LOG.warning("videos are decoded by PyAV: %s", why)
