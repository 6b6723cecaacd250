"""Buffer of the newest scene, which each page fetches as fast as it can.

    control or network thread --post--> LatestFrameBuffer <--next-- one HTTP thread per page

Scenes are not queued: a page that asks late gets the newest scene, and delays no other.
"""

from __future__ import annotations

import json
import math
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vla_robot.core.messages import Image
from vla_robot.transport.jpeg import encode_jpeg

JPEG_QUALITY = 85
"""Quality of frames for people; a policy's frames are not encoded here."""

_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Scene:
    """Facts and images of one moment.

    Attributes:
        number: number of the scene; scenes of the same number are equal.
        facts: plain data for JSON; a number that is not finite becomes null.
        images: camera -> (H, W, 3) uint8 RGB.
    """

    number: int
    facts: Mapping[str, Any]
    images: Mapping[str, Image]

    @cached_property
    def packed(self) -> bytes:
        """The scene as bytes: length of the JSON (4 bytes, big-endian), the JSON, the JPEG files of its "pictures"."""
        files = {name: encode_jpeg(image, JPEG_QUALITY).tobytes() for name, image in self.images.items()}
        pictures = [{"name": name, "bytes": len(file)} for name, file in files.items()]
        text = json.dumps({"number": self.number, "pictures": pictures, **plain(self.facts)}, allow_nan=False).encode()
        return b"".join([_LENGTH.pack(len(text)), text, *files.values()])


class LatestFrameBuffer:
    """Holds the newest scene. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._scene: Scene | None = None
        self._closed = False

    def post(self, facts: Mapping[str, Any], images: Mapping[str, Image]) -> None:
        """Replace the scene; return at once. The thread that fetches a scene encodes it."""
        with self._changed:
            number = 1 if self._scene is None else self._scene.number + 1
            self._scene = Scene(number, facts, images)
            self._changed.notify_all()

    def next(self, seen: int, timeout_s: float) -> Scene | None:
        """Wait until the newest scene's number differs from `seen`, and return it; None after the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._differs(seen), timeout_s)
            return self._scene if self._differs(seen) else None

    def close(self) -> None:
        """Wake all waiting threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _differs(self, seen: int) -> bool:
        return self._scene is not None and self._scene.number != seen


def plain(value: Any) -> Any:
    """Convert arrays and numbers that are not finite to plain data for JSON.

    >>> plain({"state": np.array([0.25, np.nan])})
    {'state': [0.25, None]}
    """
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
