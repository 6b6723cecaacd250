"""`vla view`: serves a page that shows a bridge's cameras and state, with the e-stop."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from vla_robot.cli.build import client_security
from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.interrupt import not_suspended, stop_on_interrupt
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import say
from vla_robot.cli.common.web_options import PageArgs
from vla_robot.core.errors import RecipeError
from vla_robot.core.messages import Image
from vla_robot.transport.jpeg import encode_jpeg
from vla_robot.web.latest_frame import LatestFrameBuffer
from vla_robot.web.server import Access, Listen, WebServer
from vla_robot.web.view import BridgeView, Listener, about

DEFAULT_PORT = 8571
SLICE_S = 0.2
OVERLAY_QUALITY = 90
"""JPEG quality of the overlay."""
STOP_REASON = "the page of vla view"


@dataclass(frozen=True)
class ViewArgs:
    """Watch a running bridge in the browser: cameras, traces, latency, limits, e-stop. The page cannot drive."""

    robot: Annotated[str, tyro.conf.Positional, option("ADDRESS")]
    """the bridge's address, e.g. tcp://127.0.0.1:5570"""
    page: Annotated[PageArgs, tyro.conf.arg(name="")] = field(default_factory=PageArgs)
    read_only: bool = False
    """no e-stop on the page: visitors can only look"""
    overlay: Annotated[Path | None, option("DATASET")] = None
    """lay the first frame of this LeRobot dataset over the live one, to check whether the camera moved"""
    rerun: Annotated[Path | None, option("FILE")] = None
    """also record the view for Rerun's viewer, .rrd; needs the extra [rerun]"""
    key: Annotated[str | None, option("NAME")] = None
    """which of this computer's keys to use for the bridge; only needed if there are several"""
    json: Annotated[Path | None, option("FILE")] = None
    """at the end, also write the counts to this file as JSON"""


def main(args: ViewArgs) -> int:
    """Serve the page until Ctrl-C.

    Raises:
        TransportError: no bridge answers, or the page's port is taken.
    """
    listen = args.page.listen(DEFAULT_PORT)
    board, started_s = LatestFrameBuffer(), time.monotonic()
    with (
        not_suspended(),  # the page's e-stop would stop working
        _listener(args) as listener,
        BridgeView(args.robot, board, security=client_security(args.robot, args.key), listener=listener) as view,
        contextlib.closing(
            serve_page(view, board, access(args.read_only, listen), listen, _overlay(args, view))
        ) as web,
        stop_on_interrupt() as stop,
    ):
        _announce(args, view, web)
        while not stop.wait(SLICE_S):
            pass
    elapsed_s = time.monotonic() - started_s
    if args.json:
        rows = [("ticks", view.ticks, "1"), ("time", elapsed_s, "s"), ("rate", view.ticks / elapsed_s, "Hz")]
        write_json(args.json, "view", [{"name": n, "value": v, "unit": u} for n, v, u in rows])
    say(f"\nThe page is closed; the robot was not affected. {view.ticks} ticks were received in {elapsed_s:.0f} s.")
    return 0


def access(read_only: bool, listen: Listen) -> Access:
    """Return who may use the page: off this computer, looking needs a token as well."""
    fresh = Access()
    watcher = None if listen.is_loopback else Access().operator
    return Access(None if read_only else fresh.operator, watcher)


def serve_page(
    view: BridgeView,
    board: LatestFrameBuffer,
    access: Access,
    listen: Listen,
    overlay: Mapping[str, Image] | None = None,
) -> WebServer:
    """Serve the page of a bridge; an operator may stop the arm.

    Args:
        view: view of that bridge.
        board: board that `view` posts to.
        access: permissions of each token.
        listen: address of the page.
        overlay: camera -> (H, W, 3) uint8 that the page lays over the live picture.
    """
    pictures = {
        name: base64.b64encode(encode_jpeg(image, OVERLAY_QUALITY)).decode() for name, image in (overlay or {}).items()
    }

    def told() -> Mapping[str, Any]:
        return about(f"{view.embodiment.name} at {view.address}", view.embodiment, kind="view", overlay=pictures)

    def stop(body: Mapping[str, Any]) -> Mapping[str, Any]:
        view.stop(STOP_REASON)
        return {"stopped": True}

    return WebServer(board, told, {"stop": stop} if access.operator else {}, access, listen)


def _overlay(args: ViewArgs, view: BridgeView) -> dict[str, Image]:
    """Return the first frame of the dataset's cameras that the robot has too.

    Raises:
        DataError: not a LeRobot dataset.
        RecipeError: none of its cameras has the name of one of the robot's.
    """
    if args.overlay is None:
        return {}
    from vla_robot.data.formats.lerobot.demo_dataset import open_demos

    recorded, live = open_demos(args.overlay).images(0), [camera.name for camera in view.embodiment.cameras]
    if not set(recorded) & set(live):
        raise RecipeError(
            f"--overlay {args.overlay} has the cameras {', '.join(recorded)}, and the robot has "
            f"{', '.join(live) or 'none'}: none has the same name."
        )
    return {name: image for name, image in recorded.items() if name in live}


@contextlib.contextmanager
def _listener(args: ViewArgs) -> Iterator[Listener]:
    if args.rerun is None:
        yield lambda tick, embodiment: None
        return
    from vla_robot.cli.view.rerun_view import RerunLog

    with contextlib.closing(RerunLog(args.rerun)) as log:
        yield log


def _announce(args: ViewArgs, view: BridgeView, web: WebServer) -> None:
    cameras = ", ".join(camera.name for camera in view.embodiment.cameras) or "none"
    lines = [f"vla view: {view.embodiment.name} at {args.robot}, cameras {cameras}"]
    if web.operator_url:
        lines.append(f"  {web.operator_url}   may stop the arm: keep it to yourself")
    lines.append(f"  {web.watcher_url}   may look only")
    lines.append("  Ctrl-C closes the page; the arm runs on.")
    lines.append("Next: open one of the two in a browser." if web.operator_url else "Next: open it in a browser.")
    say("\n".join(lines), flush=True)
