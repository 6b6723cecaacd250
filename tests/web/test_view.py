"""Watching a bridge: what arrives, what a viewer cannot do, the e-stop; and the page itself, in headless Chromium."""

from __future__ import annotations

import contextlib
import http.server
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from waiting import eventually

from benchmarks.loop import EmulatedArm
from vla_robot.cli.view.view import access, serve_page
from vla_robot.core.clock import MonotonicClock
from vla_robot.core.errors import DataError, TransportError, VlaError
from vla_robot.core.messages import ActionChunk, Image
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.bridge import Bridge
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.serve.bridge.server import BridgeServer
from vla_robot.transport.keys import KeyFolder, ServerSecurity
from vla_robot.transport.sockets import ClientSocket, ServerSocket
from vla_robot.transport.wire import Message, decode, encode
from vla_robot.web.latest_frame import LatestFrameBuffer, Scene
from vla_robot.web.server import Listen
from vla_robot.web.view import BridgeView

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RATE_HZ = 50.0
DEADLINE_S = 120.0
NEVER_S = 1000.0
RATE_TICKS = 100
PATTERN = np.array([200, 40, 90], np.uint8)
TEN_PAIRS_IN_A_SECOND = """(() => {
  const [at, pictures] = before, now = performance.now();
  if (now - at < 1000) return false;
  before = [now, shown.pictures];
  return ((shown.pictures - pictures) / 2 / (now - at)) * 1000 >= 10;
})()"""
PIXEL = "[...document.querySelectorAll('figure canvas')[{camera}].getContext('2d').getImageData(99, 99, 1, 1).data]"
PHONE = {"width": 390, "height": 844}


class Served:
    """An emulated arm behind a bridge in a thread, whose watchdog alone would not stop it."""

    def __init__(self, address: str = "tcp://127.0.0.1:0", security: ServerSecurity | None = None) -> None:
        clock = MonotonicClock()
        self.arm = EmulatedArm(RATE_HZ)
        self.socket = ServerSocket(address, security)
        self.address = self.socket.address
        limits = SafetyFilter(self.arm.embodiment, limits_of(self.arm.embodiment, LimitsRecipe()))
        watchdog = Watchdog(clock, hold_after_s=NEVER_S, stop_after_s=NEVER_S)
        self.server = BridgeServer(Bridge(self.arm, limits, watchdog, clock), self.socket, clock)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self.server.serve, args=(self._over.is_set,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(timeout=60)
        self.socket.close()


@pytest.fixture
def served() -> Iterator[Served]:
    with contextlib.closing(Served()) as served:
        yield served


@pytest.fixture
def watch(served: Served) -> Iterator[Callable[[], tuple[BridgeView, LatestFrameBuffer]]]:
    with ExitStack() as stack:

        def attach() -> tuple[BridgeView, LatestFrameBuffer]:
            board = LatestFrameBuffer()
            return stack.enter_context(BridgeView(served.address, board)), board

        yield attach


@pytest.fixture
def driven(served: Served) -> Iterator[Served]:
    """A controller drives it all the while."""
    over = threading.Event()

    def run() -> None:
        with RemoteRobot(served.address) as robot, contextlib.suppress(VlaError):
            while not over.is_set():
                drive(robot, ticks=RATE_TICKS)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield served
    over.set()
    thread.join(DEADLINE_S)


@pytest.fixture
def overlay() -> dict[str, Image]:
    """What the page lays over the live pictures."""
    return {}


@pytest.fixture
def open_page(driven: Served, browser: Browser, overlay: dict[str, Image]) -> Iterator[Callable[..., Page]]:
    """Opens the page of `vla view` on the driven arm; complaints of the browser fail the test."""
    driven.arm.frame[:] = PATTERN
    listen, board, complaints = Listen(), LatestFrameBuffer(), []
    with (
        BridgeView(driven.address, board) as view,
        contextlib.closing(serve_page(view, board, access(read_only=False, listen=listen), listen, overlay)) as web,
        ExitStack() as stack,
    ):

        def start(operator: bool = True, **options: Any) -> Page:
            context = browser.new_context(**options)
            stack.callback(context.close)
            page = context.new_page()
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.goto((operator and web.operator_url) or web.watcher_url)
            assert comes_true(page, "shown.pictures >= 4")
            return page

        yield start
    assert [text for text in complaints if "403" not in text] == []


def comes_true(page: Page, expression: str) -> bool:
    """Playwright's own waiting compiles text in the page, which the page's policy forbids."""
    return eventually(lambda: page.evaluate(expression))


def scene_with(board: LatestFrameBuffer, wanted: Callable[[dict[str, Any]], bool]) -> Scene:
    """The first scene from now on with facts as wanted."""
    seen, end = 0, time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        scene = board.next(seen, timeout_s=1.0)
        if scene is not None:
            seen = scene.number
            if wanted(dict(scene.facts)):
                return scene
    raise AssertionError("no such scene came")


def drive(robot: RemoteRobot, ticks: int) -> None:
    """Some actions, the first too large; fewer when the arm is stopped."""
    observation = robot.begin(seed=0)
    for k in range(ticks):
        action = [[0.2 if k == 0 else 0.001, 0.0, 0.0, 1.0]]
        robot.send(ActionChunk(np.array(action), observation.stamp_ns, observation.step, chunk_gap=0.25))
        tick = robot.newest(after=observation.step, timeout_s=DEADLINE_S)
        if tick is None or tick.over:
            return
        observation = tick.result.observation


def test_a_viewer_sees_frames_state_latency_and_what_was_cut(
    driven: Served, watch: Callable[[], tuple[BridgeView, LatestFrameBuffer]]
) -> None:
    _, board = watch()
    scene = scene_with(board, lambda facts: bool(facts["cuts"] and facts.get("capture_to_command_ms")))
    assert scene.facts["mode"] == "run" and scene.facts["instruction"] == "lift the red cube"
    assert (scene.facts["chunk_gap"], scene.facts["entropy"]) == (0.25, None)
    assert scene.facts["capture_to_command_ms"] > 0 and len(scene.facts["executed"]) == 4
    np.testing.assert_array_equal(scene.images["wrist"], driven.arm.frame)
    (cut,) = scene.facts["cuts"]
    assert cut["dim"] == "dx" and cut["times"] >= 1 and cut["allowed"] < cut["wanted"]


def test_a_log_that_fails_is_shown(driven: Served, watch: Callable[[], tuple[BridgeView, LatestFrameBuffer]]) -> None:
    driven.server._bridge.faults.add("log", DataError("the disk is full."))
    _, board = watch()
    scene = scene_with(board, lambda facts: bool(facts["log_failure"]))
    assert scene.facts["log_failure"] == "the disk is full." and scene.facts["counts"]["log_failures"] == 1


def test_before_any_episode_the_page_says_so(watch: Callable[[], tuple[BridgeView, LatestFrameBuffer]]) -> None:
    view, board = watch()
    scene = scene_with(board, lambda facts: facts["reason"] == "no episode is running")
    assert not scene.facts["running"] and scene.facts.get("episode", 0) == 0
    assert view.embodiment.name == "emulated"


def test_between_episodes_a_viewer_sees_fresh_frames_and_the_arm_is_told_nothing(
    served: Served, watch: Callable[[], tuple[BridgeView, LatestFrameBuffer]]
) -> None:
    view, board = watch()
    scene = scene_with(board, lambda facts: facts.get("tick", 0) > 3)
    assert scene.facts["mode"] == "hold" and not scene.facts["running"]
    with RemoteRobot(served.address) as robot:
        drive(robot, ticks=3)
        robot.end()
    told = len(served.arm.told_ns)
    served.arm.frame[:] = PATTERN
    seen = view.ticks
    assert eventually(lambda: view.ticks > seen + 3)
    np.testing.assert_array_equal(
        scene_with(board, lambda facts: True).images["wrist"], PATTERN * np.ones_like(served.arm.frame)
    )
    assert len(served.arm.told_ns) == told


def test_a_viewer_takes_the_arm_from_nobody(
    served: Served, watch: Callable[[], tuple[BridgeView, LatestFrameBuffer]]
) -> None:
    watch()
    with RemoteRobot(served.address) as robot:
        robot.begin(seed=0)
        watch()
        assert robot.newest(after=5, timeout_s=DEADLINE_S) is not None
        assert robot.status()["running"]


@pytest.mark.parametrize("kind", ["reset", "chunk", "end", "arm", "close"])
def test_a_viewer_commands_nothing(served: Served, kind: str) -> None:
    with RemoteRobot(served.address) as robot, ClientSocket(served.address) as viewer:
        robot.begin(seed=0)
        viewer.send(encode(Message("view", 1, {"seen": 0})))
        viewer.send(encode(Message(kind, 2, {"session": "guessed"})))
        answers: list[Message] = []

        def answered() -> bool:
            frames = viewer.receive(0.1)
            answers.extend([] if frames is None else [decode(frames)])
            return bool(answers) and answers[-1].kind == "error"

        assert eventually(answered)
        assert "does not command the arm" in answers[-1].body["message"]
        assert robot.status()["running"]


def test_the_e_stop_of_a_viewer_stops_the_arm_and_latches(
    served: Served, watch: Callable[[], tuple[BridgeView, LatestFrameBuffer]]
) -> None:
    view, board = watch()
    with RemoteRobot(served.address) as robot:
        drive(robot, ticks=3)
        view.stop("the page")
        assert robot.status()["mode"] == "stopped"
        told = len(served.arm.told_ns)
        scene = scene_with(board, lambda facts: facts["mode"] == "stopped")
        assert "the page" in scene.facts["reason"]
        assert len(served.arm.told_ns) == told


def test_a_viewer_that_takes_nothing_delays_nobody(served: Served) -> None:
    with ClientSocket(served.address) as deaf, RemoteRobot(served.address) as robot:
        deaf.send(encode(Message("view", 1, {"seen": 0})))
        robot.begin(seed=0)
        tick = robot.newest(after=100, timeout_s=DEADLINE_S)
        assert tick is not None
        assert robot.status()["counts"]["missed_ticks"] <= 100  # of at least as many; a busy computer misses some


def test_a_bridge_that_ends_is_told_and_one_that_comes_back_is_shown_again() -> None:
    first, board = Served(), LatestFrameBuffer()
    with BridgeView(first.address, board):
        scene_with(board, lambda facts: facts["link"]["silent_s"] == 0)
        first.close()
        scene_with(board, lambda facts: facts["link"]["silent_s"] > 0)
        with contextlib.closing(Served(first.address)) as second, RemoteRobot(second.address) as robot:
            robot.begin(seed=0)
            scene_with(board, lambda facts: facts["link"]["silent_s"] == 0 and facts.get("tick", 0) > 0)


def test_nobody_there_is_told_in_words() -> None:
    with pytest.raises(TransportError, match="Is `vla bridge` running there"):
        BridgeView("tcp://127.0.0.1:9", LatestFrameBuffer(), connect_timeout_s=0.2)


def test_a_viewer_whose_key_is_revoked_gets_no_tick_more(tmp_path: Path) -> None:
    """It went on to receive them: only what it sent was refused."""
    robot, desk = KeyFolder(tmp_path / "robot"), KeyFolder(tmp_path / "desk")
    for name in ("desk", "lab"):
        robot.allow(desk.create(name).public, name)
    desk.trust("127.0.0.1", robot.create("robot").public)
    with contextlib.closing(Served(security=robot.server_security())) as served:
        desk_keys, lab_keys = (desk.client_security(served.address, name) for name in ("desk", "lab"))
        with (
            RemoteRobot(served.address, security=desk_keys) as controller,
            BridgeView(served.address, LatestFrameBuffer(), security=lab_keys) as view,
        ):
            controller.begin(seed=0)
            assert eventually(lambda: view.ticks > 3)
            robot.allowed.remove("lab")

            def gets_none() -> bool:
                """In fifty ticks of the bridge; what was in flight may arrive late."""
                told, seen = len(served.arm.told_ns), view.ticks
                assert eventually(lambda: len(served.arm.told_ns) > told + 50)
                return view.ticks == seen

            assert eventually(gets_none)
            with pytest.raises(TransportError):
                view.stop("a revoked viewer")
            assert controller.status()["mode"] != "stopped"


def test_a_stop_needs_no_new_connection(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is kept open for it: a flood of connections may delay the next one."""
    with BridgeView(served.address, LatestFrameBuffer()) as view:
        assert eventually(lambda: bool(view._link.status))  # pyright: ignore[reportPrivateUsage]

        def refused(*_: object) -> None:
            raise TransportError("no new connection")

        monkeypatch.setattr("vla_robot.web.view.ClientSocket", refused)
        view.stop("the page")
        assert served.server.status()["reason"] == "emergency stop by the page"


def test_a_stop_that_gets_no_answer_over_the_open_connection_takes_a_new_one(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_robot.web.view.WARM_TIMEOUT_S", 0.0)
    with BridgeView(served.address, LatestFrameBuffer()) as view:
        view.stop("the page")
        assert served.server.status()["reason"] == "emergency stop by the page"


def test_a_view_goes_on_after_something_odd(
    served: Served, monkeypatch: pytest.MonkeyPatch, watch: Callable[[], tuple[BridgeView, LatestFrameBuffer]]
) -> None:
    odd = [RuntimeError("a library's bug"), ZeroDivisionError()]
    take_tick = BridgeView._take_tick  # pyright: ignore[reportPrivateUsage]

    def fails_twice(self: BridgeView, message: Message, now_ns: int) -> None:
        if odd:
            raise odd.pop()
        take_tick(self, message, now_ns)

    monkeypatch.setattr(BridgeView, "_take_tick", fails_twice)
    view, _ = watch()
    with RemoteRobot(served.address) as robot:
        robot.begin(seed=0)
        assert eventually(lambda: view.ticks > 0) and odd == []


def test_a_stop_that_is_not_answered_is_no_stop(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla_robot.web.view.STOP_TIMEOUT_S", 0.2)
    with BridgeView(served.address, LatestFrameBuffer()) as view:
        served.close()
        with pytest.raises(TransportError, match="did not answer 'stop'"):
            view.stop("the page")


def test_a_read_only_page_has_no_stop(
    served: Served, watch: Callable[[], tuple[BridgeView, LatestFrameBuffer]]
) -> None:
    view, board = watch()
    granted = access(read_only=True, listen=Listen())
    assert granted.operator is None
    with contextlib.closing(serve_page(view, board, granted, Listen())) as web:
        assert web.operator_url is None


def test_the_page_shows_both_cameras_ten_times_a_second(open_page: Callable[..., Page]) -> None:
    page = open_page()
    # In some second of the next few: other programs use the same cores.
    page.evaluate("globalThis.before = [performance.now(), shown.pictures]")
    assert comes_true(page, TEN_PAIRS_IN_A_SECOND)
    for camera in range(2):
        pixel = page.evaluate(PIXEL.format(camera=camera))
        np.testing.assert_allclose(pixel[:3], PATTERN, atol=6)
    assert [page.inner_text(f"figure:nth-child({k}) figcaption") for k in (1, 2)] == ["front", "wrist"]


@pytest.mark.parametrize("overlay", [{"wrist": np.full((84, 84, 3), 10, np.uint8)}])
def test_a_recorded_frame_lies_half_transparent_over_its_camera_and_over_no_other(
    open_page: Callable[..., Page],
) -> None:
    page = open_page()
    assert page.is_visible("#overlay")
    mixed = (0.5 * PATTERN + 0.5 * 10).tolist()
    near = "{pixel}.slice(0, 3).every((value, i) => Math.abs(value - {wanted}[i]) < 7)"
    assert comes_true(page, near.format(pixel=PIXEL.format(camera=1), wanted=mixed))
    assert comes_true(page, near.format(pixel=PIXEL.format(camera=0), wanted=PATTERN.tolist()))
    page.fill("#overlay-share", "0")
    assert comes_true(page, near.format(pixel=PIXEL.format(camera=1), wanted=PATTERN.tolist()))


def test_without_recorded_frames_there_is_no_slider(open_page: Callable[..., Page]) -> None:
    assert open_page().is_hidden("#overlay")


def test_the_page_shows_fresh_frames_while_no_episode_runs(served: Served, browser: Browser) -> None:
    listen, board = Listen(), LatestFrameBuffer()
    with (
        BridgeView(served.address, board) as view,
        contextlib.closing(serve_page(view, board, access(read_only=True, listen=listen), listen)) as web,
        contextlib.closing(browser.new_context()) as context,
    ):
        page = context.new_page()
        page.goto(web.watcher_url)
        for colour in (PATTERN, PATTERN[::-1]):  # whatever the cameras see changes, and the page with it
            served.arm.frame[:] = colour
            near = f"{PIXEL.format(camera=0)}.slice(0, 3).every((v, i) => Math.abs(v - {colour.tolist()}[i]) < 7)"
            assert comes_true(page, f"shown.pictures > 0 && {near}")
        assert page.inner_text("#mode") == "IDLE" and page.inner_text("#reason") == "no episode is running"
    assert served.arm.told_ns == []


def test_the_page_tells_mode_latency_and_what_was_cut(open_page: Callable[..., Page]) -> None:
    page = open_page()
    assert comes_true(page, "document.getElementById('mode').textContent === 'RUN'")
    assert comes_true(page, "document.getElementById('clamps').textContent.includes('dx')")
    assert float(page.inner_text("#latency")) >= 0
    assert page.inner_text("#instruction") == "“lift the red cube”"
    assert page.inner_text("#title") == "emulated"


def test_the_button_on_the_page_stops_the_arm(driven: Served, open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.click("#stop")
    # The watchdog alone would take a thousand seconds.
    assert comes_true(page, "shown.mode === 'stopped'")
    told = len(driven.arm.told_ns)
    assert page.inner_text("#mode") == "STOPPED" and "the page of vla view" in page.inner_text("#reason")
    assert driven.server.status()["mode"] == "stopped" and len(driven.arm.told_ns) == told


def test_the_button_stops_the_arm_while_others_hold_silent_connections(
    driven: Served, open_page: Callable[..., Page], silent: Callable[..., contextlib.AbstractContextManager[object]]
) -> None:
    page = open_page()
    port = int(page.evaluate("location.port"))
    with silent(port, 150), silent(port, 150, b"GET / HTTP/1.1\r\nX-Slow: "):
        page.locator("#stop").click()
        assert eventually(lambda: driven.server.status()["mode"] == "stopped")


def test_a_second_page_without_the_token_can_stop_nothing(driven: Served, open_page: Callable[..., Page]) -> None:
    open_page()
    second = open_page(operator=False)
    assert second.is_hidden("#stop") and second.inner_text("#watching") == "watching only"
    script = (
        "fetch('/act/stop', {method: 'POST', body: '{}', headers: {'X-VLA-Token': 'guessed'}}).then((a) => a.status)"
    )
    assert second.evaluate(script) == 403
    assert driven.server.status()["mode"] != "stopped"


def test_a_page_of_another_site_can_neither_stop_nor_look(
    driven: Served, open_page: Callable[..., Page], browser: Browser
) -> None:
    target = open_page().url
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{other.server_port}/")
        place, _, token = target.partition("#")
        send = (
            "fetch(place + 'act/stop', {method: 'POST', body: '{}', mode, headers}).then(() => 'sent', () => 'refused')"
        )
        for mode, headers in (("cors", {"X-VLA-Token": token}), ("no-cors", {})):
            page.evaluate(f"([place, mode, headers]) => {send}", [place, mode, headers])
        assert (
            page.evaluate("(place) => fetch(place + 'about').then(() => 'read', () => 'refused')", place) == "refused"
        )
        page.close()
    assert driven.server.status()["mode"] != "stopped"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_picture_of_the_page_is_as_it_should_be(open_page: Callable[..., Page], scheme: str) -> None:
    import PIL.Image

    page = open_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
    assert comes_true(page, "document.getElementById('mode').textContent !== '…'")
    picture = np.asarray(PIL.Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
    assert picture.shape == (800, 1280, 3)
    ground = picture[-3, 3]
    assert (ground < 60).all() if scheme == "dark" else (ground > 200).all()
    # Two cameras of this colour fill a good part of it, and the stop button is as red as it is large.
    assert (np.abs(picture - PATTERN).max(axis=-1) < 8).mean() > 0.15
    assert (np.abs(picture - [220, 38, 38]).max(axis=-1) < 4).sum() > 3000


def test_on_a_phone_nothing_is_cut_off_and_the_stop_is_in_reach(open_page: Callable[..., Page]) -> None:
    page = open_page(viewport=PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    box = page.locator("#stop").bounding_box()
    assert box is not None and box["height"] >= 44 and 0 <= box["y"] <= PHONE["height"] - box["height"]
    page.tap("#stop")
    assert comes_true(page, "shown.mode === 'stopped'")
