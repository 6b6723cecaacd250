"""`vla view --rerun FILE`: records the view of a bridge for Rerun's viewer."""

from __future__ import annotations

from pathlib import Path

from vla_robot.core.clock import NS_PER_MS, NS_PER_S
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import DataError
from vla_robot.core.host.durable import make_folder, sync_folder, sync_path, writing
from vla_robot.core.host.optional import require
from vla_robot.core.robot import Tick
from vla_robot.web.latest_frame import JPEG_QUALITY


class RerunLog:
    """A listener of a BridgeView: cameras, state, executed action, latency and mode, by the arm's clock."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: file of the recording, .rrd; an existing one is never overwritten.

        Raises:
            MissingDependencyError: Rerun is not installed.
            DataError: the file exists, or cannot be written.
        """
        require("rerun-sdk", "rerun", "a recording for Rerun")
        import rerun  # pyright: ignore[reportMissingImports] - in an extra of its own

        with writing(path):
            make_folder(path.parent)
            try:
                path.open("xb").close()  # reserves the file for this process
            except FileExistsError as error:
                raise DataError(
                    f"{path} exists, and would be overwritten. Choose another file with --rerun."
                ) from error
        self._path = path
        self._rerun = rerun
        self._stream = rerun.RecordingStream("vla_view")
        try:
            self._stream.save(path)
        except (OSError, RuntimeError) as error:
            raise DataError(f"cannot write {path}: {error}. Choose another file with --rerun.") from error

    def __call__(self, tick: Tick, embodiment: Embodiment) -> None:
        result, observation = tick.result, tick.result.observation
        self._stream.set_time("capture", duration=observation.stamp_ns / NS_PER_S)
        self._stream.set_time("step", sequence=observation.step)
        for name, image in observation.images.items():
            self._stream.log(f"camera/{name}", self._rerun.Image(image).compress(jpeg_quality=JPEG_QUALITY))
        for dim, value in zip(embodiment.state, observation.state, strict=True):
            self._number(f"state/{dim.name}", float(value))
        if result.executed is not None:
            for name, value in zip(embodiment.action.names, result.executed, strict=True):
                self._number(f"executed/{name}", float(value))
        if tick.obs_stamp_ns:
            self._number("capture_to_command_ms", (result.command_ns - tick.obs_stamp_ns) / NS_PER_MS)
        self._stream.log("mode", self._rerun.TextLog(f"{tick.mode} {tick.reason}".rstrip()))

    def close(self) -> None:
        """Complete the file on the disk.

        Raises:
            DataError: the file cannot be written.
        """
        self._stream.flush()
        self._stream.disconnect()
        with writing(self._path):
            sync_path(self._path)
            sync_folder(self._path.parent)

    def _number(self, place: str, value: float) -> None:
        self._stream.log(place, self._rerun.Scalars(value))
