"""Our server in openpi's protocol, spoken to frame by frame, by our own client, and by openpi-client itself."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer_programs import published_client, served
from waiting import eventually
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from vla_robot.core.embodiment import Dim, Embodiment
from vla_robot.core.errors import ContractError, PolicyError, TransportError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.recipe.peer import PeerImageRecipe, PeerNumbersRecipe, PeerRecipe
from vla_robot.serve.interop import websocket_server
from vla_robot.serve.interop.mapping import PeerMapping
from vla_robot.serve.interop.openpi_policy import OpenpiPolicy
from vla_robot.serve.interop.openpi_schema import ExampleWords, RecipeWords, Words
from vla_robot.serve.interop.openpi_server import OpenpiServer
from vla_robot.serve.interop.openpi_wire import pack, unpack
from vla_robot.serve.policy.batcher import Batcher, Line
from vla_robot.serve.policy.server import answering
from vla_robot.testing import toy_embodiment

IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
ARM = toy_embodiment(cameras=("front", "wrist"), height=4, width=6)
JOINT_ARM = replace(
    ARM, state=(*(Dim(f"joint_{k}", "rad", -3.0, 3.0) for k in range(7)), Dim("gripper", "1", 0.0, 1.0))
)
POSE_ARM = replace(
    ARM,
    state=(
        *(Dim(name, "m", -1.0, 1.0) for name in ("x", "y", "z")),
        *(Dim(name, "rad", -6.3, 6.3) for name in ("rx", "ry", "rz")),
        Dim("gripper_width", "m", 0.0, 0.08),
    ),
)
CAMERAS = ("front", "wrist")
LIBERO = {
    "observation/image": IMAGE,
    "observation/wrist_image": IMAGE + 1,
    "observation/state": np.arange(8.0),
    "prompt": "lift",
}
DROID = {
    "observation/exterior_image_1_left": IMAGE,
    "observation/wrist_image_left": IMAGE + 1,
    "observation/joint_position": np.arange(7.0),
    "observation/gripper_position": np.array([7.0]),
    "prompt": "lift",
}
ALOHA = {
    "images": {"cam_high": IMAGE.transpose(2, 0, 1), "cam_left_wrist": (IMAGE + 1).transpose(2, 0, 1)},
    "state": np.arange(8.0),
    "prompt": "lift",
}
UR5 = {
    "base_rgb": IMAGE,
    "wrist_rgb": IMAGE + 1,
    "joints": np.arange(7.0, dtype=np.float32),
    "gripper": 7.0,
    "prompt": "lift",
}
OURS = {"front": IMAGE, "wrist": IMAGE + 1, "state": np.arange(8.0), "prompt": "lift"}


class Policy:
    """Answers with the sum of what it sees; keeps it."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def __call__(self, observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        self.seen += observations
        if any(o.instruction == "nonsense" for o in observations):
            raise ContractError("the policy was trained on another task.")
        return [
            ActionChunk(np.full((2, 7), float(len(o.state))), o.stamp_ns, o.step, {"reason": 2.5}) for o in observations
        ]


Start = Callable[..., str]


@pytest.fixture
def serving() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(
            policy: Policy,
            cameras: Sequence[str] = CAMERAS,
            embodiment: Embodiment | None = JOINT_ARM,
            words: Words | None = None,
        ) -> str:
            schema = words or ExampleWords(cameras, embodiment)
            return stack.enter_context(served(policy, lambda batcher: OpenpiServer(batcher, "toy_policy", schema, 0)))

        yield start


def ask(connection: ClientConnection, request: Mapping[str, Any]) -> Mapping[str, Any]:
    connection.send(pack(request))
    frame = connection.recv()
    assert isinstance(frame, bytes), frame
    return unpack(frame)


def test_the_server_speaks_first_and_says_what_its_numbers_mean(serving: Start) -> None:
    with connect(serving(Policy())) as connection:
        frame = connection.recv()
    assert isinstance(frame, bytes)
    told = unpack(frame)
    assert (told["policy"], told["cameras"], told["rate_hz"]) == ("toy_policy", ["front", "wrist"], 10.0)
    assert told["action"] == [{"name": "dx", "unit": "m"}, {"name": "gripper", "unit": "1"}]


@pytest.mark.parametrize("request_", [LIBERO, DROID, ALOHA, UR5, OURS], ids=["LIBERO", "DROID", "ALOHA", "UR5", "ours"])
def test_every_familys_words_become_the_policys_own(serving: Start, request_: Mapping[str, Any]) -> None:
    policy = Policy()
    with connect(serving(policy)) as connection:
        connection.recv()
        answer = ask(connection, request_)
    np.testing.assert_array_equal(answer["actions"], np.full((2, 7), 8.0))
    (seen,) = policy.seen
    assert list(seen.images) == ["front", "wrist"]
    np.testing.assert_array_equal(seen.images["front"], IMAGE)
    np.testing.assert_array_equal(seen.images["wrist"], IMAGE + 1)
    np.testing.assert_array_equal(seen.state, np.arange(8.0))
    assert seen.instruction == "lift"


def test_an_answer_tells_the_time_of_the_policy_of_the_server_and_of_the_round_before(serving: Start) -> None:
    with connect(serving(Policy())) as connection:
        connection.recv()
        first, second = ask(connection, LIBERO), ask(connection, LIBERO)
    assert first["policy_timing"] == {"infer_ms": 2.5}
    assert list(first["server_timing"]) == ["infer_ms"]
    assert second["server_timing"]["prev_total_ms"] > 0


def test_a_policy_with_one_camera_passes_the_wrist_over(serving: Start) -> None:
    policy = Policy()
    with connect(serving(policy, (), None)) as connection:
        connection.recv()
        ask(connection, DROID)
    assert list(policy.seen[0].images) == ["image"]


def test_floats_from_0_to_1_are_pixels() -> None:
    seen = ExampleWords(CAMERAS, JOINT_ARM).read({**OURS, "front": IMAGE.astype(np.float32) / 255})
    assert np.abs(seen.images["front"].astype(int) - IMAGE).max() <= 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": None}, "'prompt' is missing or is not text"),
        ({"observation/wrist_image": None}, "'observation/wrist_image' must be an image"),
        ({"observation/image": IMAGE.astype(np.float32)}, "values must be from 0 to 1"),
        ({"observation/image": np.full(IMAGE.shape, np.nan)}, "values must be from 0 to 1"),
        ({"observation/image": IMAGE[..., :1]}, r"must have shape \(H, W, 3\)"),
        ({"observation/image": IMAGE.astype(np.int64)}, "got int64"),
        ({"observation/state": "far"}, "must be a row of numbers"),
        ({"observation/state": np.zeros((2, 2))}, "must be a row of numbers"),
        ({"observation/state": np.array([np.inf])}, "not finite"),
    ],
)
def test_what_is_no_observation_is_refused(changes: Mapping[str, Any], says: str) -> None:
    with pytest.raises((TransportError, ContractError), match=says):
        ExampleWords(CAMERAS, JOINT_ARM).read({**LIBERO, **changes})


@pytest.mark.parametrize(
    ("request_", "embodiment", "says"),
    [
        (
            {**UR5, "joints": np.arange(6.0)},
            POSE_ARM,
            "sends 6 joints as 'joints', and the policy's state is x \\[m\\], y",
        ),
        (DROID, POSE_ARM, "sends 7 joints as 'observation/joint_position'"),
        ({**UR5, "joints": np.arange(8.0)}, JOINT_ARM, "sends 8 joints as 'joints'"),
        ({**UR5, "joints": np.arange(6.0), "gripper": np.zeros(2)}, JOINT_ARM, "sends a gripper as 'gripper'"),
        (LIBERO, POSE_ARM, "sends 8 numbers"),
        ({**OURS, "state": np.arange(6.0)}, POSE_ARM, "sends 6 numbers"),
        (LIBERO, replace(ARM, state=()), "the policy's state is no numbers at all"),
    ],
)
def test_numbers_that_mean_something_else_than_the_policys_state_are_refused(
    request_: Mapping[str, Any], embodiment: Embodiment, says: str
) -> None:
    """Six joints and a gripper were taken for x, y, z, rx, ry, rz and the gripper's width."""
    with pytest.raises(TransportError, match=says):
        ExampleWords(CAMERAS, embodiment).read(request_)


def test_the_policys_own_numbers_are_taken_under_a_name_that_does_not_say_what_they_are() -> None:
    own = np.arange(7.0)
    for request_ in ({**OURS, "state": own}, {**LIBERO, "observation/state": own}, {**ALOHA, "state": own}):
        np.testing.assert_array_equal(ExampleWords(CAMERAS, POSE_ARM).read(request_).state, own)


@pytest.mark.parametrize(
    ("request_", "cameras", "says"),
    [
        ({"prompt": "lift"}, CAMERAS, "there is no image"),
        ({"observation/imag": IMAGE, "prompt": "lift"}, CAMERAS, "did you mean 'observation/image'"),
        ({"observation/image": IMAGE, "prompt": "lift"}, CAMERAS, "camera 'wrist', but there is no 'observation/wrist"),
        (LIBERO, ("front", "wrist", "left"), "has 3 cameras, and this kind of robot only 2.*front, wrist, left"),
    ],
)
def test_what_the_policy_needs_and_does_not_get_is_named(
    request_: Mapping[str, Any], cameras: Sequence[str], says: str
) -> None:
    with pytest.raises(TransportError, match=says):
        ExampleWords(cameras, JOINT_ARM).read(request_)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (pack({**LIBERO, "prompt": "nonsense"}), "trained on another task"),
        (pack({"prompt": "lift"}), "there is no image"),
        (b"\xc1", "not valid msgpack"),
        ("hello", "binary frame of msgpack, got text"),
    ],
)
def test_an_error_is_a_text_frame_and_the_end_of_the_connection(serving: Start, frame: Any, says: str) -> None:
    url = serving(Policy())
    with connect(url) as connection:
        connection.recv()
        connection.send(frame)
        reason = connection.recv()
        assert isinstance(reason, str) and says in reason
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011
    with connect(url) as connection:
        connection.recv()
        assert ask(connection, LIBERO)["actions"].shape == (2, 7), "others, and the next, are served"


def test_health_is_told_without_a_websocket(serving: Start) -> None:
    url = serving(Policy()).replace("ws://", "http://")
    with urllib.request.urlopen(f"{url}/healthz", timeout=60) as response:
        assert (response.status, response.read()) == (200, b"OK\n")


def test_a_web_page_is_not_let_in(serving: Start) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(serving(Policy()), origin="https://elsewhere.example").__enter__()  # pyright: ignore[reportArgumentType]
    assert refused.value.response.status_code == 403


def test_there_is_room_for_so_many_clients_and_no_more(serving: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_server, "MAX_CONNECTIONS", 1)
    url = serving(Policy())
    with connect(url) as first:
        first.recv()
        with connect(url) as second, pytest.raises(ConnectionClosed, match="1013"):
            second.recv()
        assert ask(first, LIBERO)["actions"].shape == (2, 7)


def test_a_client_that_never_listens_keeps_neither_the_others_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_server, "SEND_TIMEOUT_S", 3.0)  # the other client fetches 16 MiB, on a busy computer
    batcher = Batcher(lambda seen, _: [ActionChunk(np.zeros((1 << 20, 2)), o.stamp_ns, 0) for o in seen], Line(8, 0))
    answers = answering(batcher)
    server = OpenpiServer(batcher, "toy_policy", ExampleWords(CAMERAS, JOINT_ARM), 0)
    closing = threading.Thread(target=server.close, daemon=True)
    with connect(server.url, max_size=None, max_queue=1, close_timeout=0.1) as deaf:
        deaf.recv()
        for _ in range(4):  # 64 MiB of answers that it does not fetch
            deaf.send(pack(LIBERO))
        with connect(server.url, max_size=None) as other:
            other.recv()
            assert ask(other, LIBERO)["actions"].shape == (1 << 20, 2)
        closing.start()
        closing.join(60)
        assert not closing.is_alive()
    batcher.close()
    answers.join()


def patiently_connected(url: str) -> ClientConnection:
    """Connect, again where the server ends the handshake: a busy computer may take longer for it than HANDSHAKE_S."""
    made: list[ClientConnection] = []

    def connects() -> bool:
        with contextlib.suppress(OSError, InvalidHandshake):
            made.append(connect(url, open_timeout=60))
        return bool(made)

    assert eventually(connects)
    return made[0]


def test_more_idle_connections_than_files_end_no_server(
    silent: Callable[..., contextlib.AbstractContextManager[object]],
) -> None:
    """250 were enough to end it for good, without a word: its loop ended with the first accept that failed."""
    script = """
import resource, sys, time
from vla_robot.serve.policy.batcher import Batcher, Line
from vla_robot.serve.interop.openpi_server import OpenpiServer
from vla_robot.serve.interop.openpi_schema import ExampleWords
from vla_robot.serve.policy.server import answering

resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
batcher = Batcher(lambda observations, keys: [], Line(1, 0))
answering(batcher)
print(OpenpiServer(batcher, "toy_policy", ExampleWords((), None), 0).url, flush=True)
time.sleep(600)
"""
    with (
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        port = int(url.rpartition(":")[2])
        idle, half = silent(port, 300), silent(port, 300, b"GET / HTTP/1.1\r\n")
        with idle, half, patiently_connected(url) as connection:
            told = connection.recv()
            assert isinstance(told, bytes) and unpack(told)["policy"] == "toy_policy"


def test_a_loop_that_ends_is_told_and_begun_again(
    serving: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from websockets.sync.server import Server

    serve_forever, broken = Server.serve_forever, [RuntimeError("can't start new thread"), None]

    def serve(self: Server) -> None:
        if not broken:
            serve_forever(self)
        elif (error := broken.pop(0)) is not None:
            raise error

    monkeypatch.setattr(Server, "serve_forever", serve)
    with connect(serving(Policy()), open_timeout=30) as connection:
        connection.recv()
        assert ask(connection, LIBERO)["actions"].shape == (2, 7)
    assert caplog.text.count("is restarted") == 2


def test_a_taken_port_is_told(serving: Start) -> None:
    port = int(serving(Policy()).rpartition(":")[2])
    with pytest.raises(TransportError, match=f"cannot listen on 127.0.0.1:{port}.*another --openpi"):
        OpenpiServer(Batcher(Policy(), Line(1, 0)), "echo", ExampleWords((), None), port)


PEER = PeerRecipe(
    rate_hz=10.0,
    images=(
        PeerImageRecipe("observation/image", "front", size_px=224),
        PeerImageRecipe("observation/wrist_image", "wrist", size_px=224),
    ),
    state=(PeerNumbersRecipe("observation/state", ("x", "x"), scale=(0.5, -0.5)),),
    action=(PeerNumbersRecipe("actions", ("dx", "gripper"), scale=(0.05, -0.5), offset=(0.0, 0.5)),),
)


def test_a_recipe_read_backwards_answers_in_the_clients_own_units(serving: Start) -> None:
    class Opens(Policy):
        def __call__(self, observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
            self.seen += observations
            return [ActionChunk(np.array([[0.05, 1.0], [-0.01, 0.0]]), o.stamp_ns, o.step) for o in observations]

    policy = Opens()
    with connect(serving(policy, words=RecipeWords(PEER, ARM))) as connection:
        told = connection.recv()
        answer = ask(connection, {**LIBERO, "observation/state": np.array([0.2, -0.2])})
    assert isinstance(told, bytes) and unpack(told)["images"] == ["observation/image", "observation/wrist_image"]
    np.testing.assert_allclose(answer["actions"], [[1.0, -1.0], [-0.2, 1.0]])  # robosuite: -1 is open
    np.testing.assert_allclose(policy.seen[0].state, [0.4])
    np.testing.assert_array_equal(policy.seen[0].images["wrist"], IMAGE + 1)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=2), st.floats(-1, 1))
def test_both_ends_of_a_recipe_undo_each_other(action: list[float], x: float) -> None:
    seen = Observation({"front": IMAGE, "wrist": IMAGE}, np.array([x]), "lift", stamp_ns=7, step=3)
    robot, policy = PeerMapping(PEER, ARM), RecipeWords(PEER, ARM)
    arrived = policy.read({**robot.images(seen), **robot.state(seen), PEER.prompt: seen.instruction})
    np.testing.assert_allclose(arrived.state, seen.state, atol=1e-12)
    answer = policy.write(ActionChunk(np.array([action]), 7, 3))
    np.testing.assert_allclose(robot.chunk(answer, seen, {}).actions, [action], atol=1e-12)


def test_a_recipe_that_does_not_fit_the_policy_is_refused_with_every_difference() -> None:
    peer = replace(PEER, rate_hz=20.0, images=PEER.images[:1], state=())
    with pytest.raises(ContractError) as refused:
        RecipeWords(peer, ARM)
    for part in ("20 Hz", "nothing is sent as camera 'wrist'", "nothing is sent as state 'x'"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"observation/state": np.zeros(3)}, "'observation/state' must be 2 numbers, got 3"),
        ({"observation/state": "far"}, "must be a row of numbers"),
        ({"observation/wrist_image": 1}, "must be an image"),
        ({"prompt": 1}, "'prompt' is missing or is not text"),
    ],
)
def test_what_does_not_fit_the_recipe_is_refused(changes: Mapping[str, Any], says: str) -> None:
    with pytest.raises((TransportError, ContractError), match=says):
        RecipeWords(PEER, ARM).read({**LIBERO, "observation/state": np.zeros(2), **changes})


@pytest.mark.parametrize("missing", ["observation/state", "observation/image", "prompt"])
def test_what_the_recipe_names_and_does_not_come_is_named(missing: str) -> None:
    whole = {**LIBERO, "observation/state": np.zeros(2)}
    request = {key: value for key, value in whole.items() if key != missing}
    with pytest.raises(TransportError, match=f"'{missing}'"):
        RecipeWords(PEER, ARM).read(request)


def test_our_own_client_gets_what_our_server_gives(serving: Start) -> None:
    peer = PeerRecipe(
        rate_hz=10.0,
        images=(PeerImageRecipe("front", "front"), PeerImageRecipe("wrist", "wrist")),
        action=(PeerNumbersRecipe("actions", ("dx", "gripper")),),
    )
    policy = Policy()
    seen = Observation({"front": IMAGE, "wrist": IMAGE}, np.array([0.5]), "lift", stamp_ns=7, step=3)
    with OpenpiPolicy(serving(policy), PeerMapping(peer, ARM)) as client:
        assert client.metadata["policy"] == "toy_policy"
        with pytest.raises(PolicyError, match=r"shape \[2, 7\], but the recipe names 2 numbers"):
            client.act([seen])
    np.testing.assert_array_equal(policy.seen[0].images["front"], IMAGE)


PEER_SCRIPT = """
import sys
import numpy as np
from openpi_client import image_tools, websocket_client_policy

image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
small = image_tools.convert_to_uint8(image_tools.resize_with_pad(image, 224, 224))
np.save(sys.argv[2], small)
client = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
assert client.get_server_metadata()["policy"] == "toy_policy", client.get_server_metadata()
libero = {
    "observation/image": small, "observation/wrist_image": small, "observation/state": np.zeros(8), "prompt": "lift",
}
droid = {
    "observation/exterior_image_1_left": small, "observation/wrist_image_left": small,
    "observation/joint_position": np.zeros(7), "observation/gripper_position": np.zeros(1), "prompt": "lift",
}
for observation in (libero, droid):
    answer = client.infer(observation)
    assert answer["actions"].shape == (2, 7) and (answer["actions"] == 8).all(), answer
    assert answer["server_timing"]["infer_ms"] > 0, answer
try:
    client.infer({**libero, "prompt": "nonsense"})
except RuntimeError as error:
    assert "trained on another task" in str(error), error
else:
    raise SystemExit("an error went unnoticed")
print("openpi-client is content")
"""


@pytest.fixture(scope="session")
def openpi_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with openpi-client, which wants NumPy 1 and forgets to ask for typing_extensions. $OPENPI_CLIENT_PYTHON
    names one that exists already."""
    packages = ("openpi-client==0.1.2", "typing_extensions")
    return published_client(tmp_path_factory.mktemp("openpi"), "OPENPI_CLIENT_PYTHON", packages, "3.11")


@pytest.mark.slow
def test_openpi_client_itself_is_answered_and_resizes_as_we_do(
    serving: Start, openpi_client: Path, tmp_path: Path
) -> None:
    from vla_robot.serve.interop.mapping import resize_with_pad

    policy = Policy()
    port = serving(policy).rpartition(":")[2]
    resized = tmp_path / "resized.npy"
    done = subprocess.run(
        [str(openpi_client), "-c", PEER_SCRIPT, port, str(resized)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "is content" in done.stdout
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    np.testing.assert_array_equal(resize_with_pad(image, 224), np.load(resized))
    np.testing.assert_array_equal(policy.seen[0].images["front"], np.load(resized))
