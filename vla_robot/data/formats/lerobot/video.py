"""Reads frames of LeRobot datasets from videos, and depth from videos or tables.

    wanted     0.000   0.108   0.200        the steps' timestamps, off by less than half a period of 0.1 s
    frames     0.000   0.100   0.200        the nearest frame is the step's frame

Depth is read in metres. LeRobot marks it in info.json; a camera that is depth only by its name is not read, since the
unit of its pixels is not known.

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
"""Number of frames of a video that are decoded together: 59 MB at 480 x 640."""
BLOCK_BYTES = 2**27
MP4_MAGIC, MATROSKA_MAGIC = b"ftyp", b"\x1a\x45\xdf\xa3"
HALF, ONE_AND_A_HALF = 0.5, 1.5
DEPTH_BITS = 12
METRES_PER = {"m": 1.0, "mm": 1e-3}
COLOUR_WORDS = {"rgb", "color", "colour"}

Decoder = Literal["torchcodec", "pyav"]


@dataclass(frozen=True)
class DepthCode:
    """The quantisation of depth to 12 bits in a video.

    Attributes:
        depth_min: depth at code 0 [m].
        depth_max: depth at code 4095 [m].
        shift: length that is added before the logarithm [m].
        use_log: whether codes are evenly spaced in the logarithm of depth, and not in depth.
    """

    depth_min: float
    depth_max: float
    shift: float
    use_log: bool


@dataclass(frozen=True)
class VideoFrames:
    """Frames of one episode in a video file; decoded in blocks, since decoding cannot begin at every frame.

    Attributes:
        path: the video file.
        timestamps: (T,) time of each step from the begin of the file [s].
        stop_s: time at which the next episode begins in the file [s]; infinite for the last one.
        period_s: period of the steps [s].
        where: dataset, episode and field, for error messages.
        depth: quantisation of depth; None for colour.
        shape: (H, W, C) of a frame, as the dataset declares.
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
        """Raise DataError unless the video has a frame for each step. No frame is decoded."""
        _require_file(self)
        wanted, times = [_inside(t, self) for t in self.timestamps], _frame_times(self)
        after = np.clip(np.searchsorted(times, wanted), 1, max(len(times) - 1, 1))
        nearest = np.minimum(np.abs(times[after - 1] - wanted), np.abs(times[after % len(times)] - wanted))
        if (nearest >= HALF * self.period_s).any():
            _repeat_last_frame(self, wanted, 0)

    @property
    def block(self) -> int:
        """Number of frames that are decoded together: BLOCK, or fewer so that they take at most BLOCK_BYTES."""
        height, width = (self.shape[0] or 1, self.shape[1] or 1) if len(self.shape) == 3 else (1, 1)
        return max(min(BLOCK, BLOCK_BYTES // (3 * height * width)), 1)


@dataclass(frozen=True)
class DepthImages:
    """Depth in a table: one TIFF or PNG of one channel a step.

    Attributes:
        files: one file per step.
        unit: unit of the stored values, "m" or "mm".
        shape: (H, W, 1) of a frame, as the dataset declares.
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
    """Return whether the camera gives depth, by its description or by its name."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return _is_marked(feature) or ("depth" in words and not words & COLOUR_WORDS)


def why_not_depth(feature: Mapping[str, Any]) -> str:
    """Return why a depth camera cannot be read in metres; "" when it can."""
    if not _is_marked(feature):
        return "a camera that is depth by its name and not by info.json (is_depth_map)"
    if feature["dtype"] == "image":
        unit = _info(feature).get("depth_unit")
        return "" if unit in METRES_PER else f"a depth image whose depth_unit in info.json is {unit!r}, not 'm' or 'mm'"
    return "" if depth_code(feature) else "a depth video without depth_min, depth_max, shift and use_log in info.json"


def depth_code(feature: Mapping[str, Any]) -> DepthCode | None:
    """Return the quantisation of a depth video; None when info.json lacks it."""
    info = _info(feature)
    numbers = [info.get(f"video.{name}") for name in ("depth_min", "depth_max", "shift")]
    use_log = info.get("video.use_log")
    values = [float(n) for n in numbers if isinstance(n, (int, float)) and math.isfinite(n)]
    if len(values) != len(numbers) or not isinstance(use_log, bool):
        return None
    low, high, shift = values
    return None if low >= high or (use_log and low + shift <= 0) else DepthCode(low, high, shift, use_log)


def depth_unit(feature: Mapping[str, Any]) -> str:
    """Return the unit of the values of a depth image."""
    return str(_info(feature)["depth_unit"])


def _info(feature: Mapping[str, Any]) -> Mapping[str, Any]:
    return feature.get("info") or feature.get("video_info") or {}


def _is_marked(feature: Mapping[str, Any]) -> bool:
    blocks = [feature.get("info") or {}, feature.get("video_info") or {}]
    return any(block.get("is_depth_map") or block.get("video.is_depth_map") for block in blocks)


@functools.lru_cache(maxsize=4)
def _decode_block(frames: VideoFrames, block: int) -> NDArray[Any]:
    """Decode a block of frames, (up to BLOCK, H, W, 3) uint8, or (..., 1) float32 [m].

    The last blocks are cached, so that reading step by step decodes each block once.

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
    """Raise DataError for a video that is missing, or neither MP4 nor Matroska.

    FFmpeg would also read a playlist, and open the files and addresses that it names.
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
    """Return a time that lies inside the episode's part of a file: at its end, the time of its last frame.

    The next episode's video follows in the same file, so that a later time would give a frame of that episode.

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
    """Decode the frames nearest to some times; None when a time is half a period or more from all frames."""
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
    """Check a video's header and packets before memory is allocated for its frames.

    Raises:
        DataError: its frames are larger than declared or allowed; a depth video lacks the 12 bits of its codes; or the
            frames from the key frame before the first wanted one to the last wanted one, all of which the decoder holds
            at once, take more than MAX_COLUMN_BYTES.
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
            raise DataError(f"{frames.where}: the video {frames.path} has no unit of time.")
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
    """Return the times, with that of the last frame for the last step of a video that is one frame short.

    Raises:
        DataError: more than the last frame is missing.
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
    """Return the times of all frames of the video file, in order [s].

    Raises:
        DataError: the file is damaged, or has no frame.
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
    """Return the times of all frames, in order [s]. Packets are read and not decoded."""
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
    """Return the decoder of videos on this computer, and log a line when it is not torchcodec.

    lerobot would choose the same one, and print about a hundred lines on what torchcodec tried.
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
    """Log the reason once, and not in each process that loads batches."""
    from torch.utils.data import get_worker_info

    worker = get_worker_info()
    if worker is None or worker.id == 0:
        _LOG.warning("videos are decoded by PyAV: %s", why)
