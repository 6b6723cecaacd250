"""What every policy promises: families, scripted ones, clients and wrappers. A new one joins by one line in KINDS."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from vla_robot.core.embodiment import Dim, Embodiment
from vla_robot.core.messages import Observation
from vla_robot.core.ports import Policy
from vla_robot.loop.takeover import Takeover
from vla_robot.policy.adapter import MirroredFrames, ObservationAdapter
from vla_robot.policy.execution_horizon import ExecutionHorizon
from vla_robot.policy.families import FAMILIES
from vla_robot.policy.scripted.experts import ScriptedExpert, lift
from vla_robot.policy.scripted.perturb import Perturbation, PerturbedPolicy
from vla_robot.policy.scripted.simple import HoldPolicy, RandomPolicy
from vla_robot.policy.scripted.waypoints import ReachPolicy
from vla_robot.record.collect import WithoutTruth
from vla_robot.record.replay import ReplayPolicy
from vla_robot.serve.interop.groot_policy import Generation, GrootPolicy
from vla_robot.serve.interop.mapping import PeerMapping
from vla_robot.serve.interop.openpi_policy import OpenpiPolicy
from vla_robot.serve.policy.batcher import Batcher, Line
from vla_robot.serve.policy.client import RemotePolicy
from vla_robot.serve.policy.server import PolicyServer, Served, answering
from vla_robot.serve.policy.shared_policy import SharedPolicy
from vla_robot.testing import (
    TOOL_AXES,
    FunctionPolicy,
    ScriptedTeleoperator,
    check_policy,
    toy_embodiment,
    toy_observation,
)
from vla_robot.transport.sockets import ServerSocket
from vla_robot.transport.wake import Wake

from ..policy.lerobot.lerobot_folders import ARM as TWO_EYED
from ..policy.lerobot.lerobot_folders import observation as lerobot_observation
from .kinds import Get, as_named

POSE = tuple(Dim(name, "m", -1.0, 1.0) for name in ("x", "y", "z", "rx", "ry", "rz"))
ARM = toy_embodiment(axes=TOOL_AXES, state=POSE)
ONE_AXIS = toy_embodiment()
WANTED = toy_embodiment(axes=TOOL_AXES, state=POSE[:2])
TRUTH = {
    "eef_pos": np.array([0.1, 0.0, 0.9]),
    "gripper_width": np.array([0.08]),
    "cube_pos": np.array([0.0, 0.05, 0.82]),
    "cube_mat": np.eye(3).ravel(),
}
SEEN = tuple(
    Observation(o.images, o.state, o.instruction, o.stamp_ns, o.step, TRUTH)
    for o in (toy_observation(ARM, step, x=0.1 * step, stamp_ns=1000 + step) for step in range(3))
)
_DRAWS = np.random.default_rng(0)
TWO_CAMERAS = tuple(
    Observation(
        {name: _DRAWS.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("front", "wrist")},
        _DRAWS.normal(size=2),
        "lift the red cube",
        stamp_ns=11 + step,
        step=step,
    )
    for step in range(2)
)
MOVES = FunctionPolicy(lambda o: np.array([[0.01 * o.state[0], *[0.0] * 5, 1.0]] * 2))


@dataclass(frozen=True)
class Kind:
    """How a policy is asked.

    Attributes:
        make: builds it.
        arm: that it drives.
        seen: what it is asked with; empty for grey frames.
        tolerance: see `check_policy`.
        batched: False for what draws from a generator or remembers an episode: it answers a batch as consecutive
            questions.
    """

    make: Callable[[Get], Policy]
    arm: Embodiment = ARM
    seen: Sequence[Observation] = SEEN
    tolerance: float = 0.0
    batched: bool = True


def openpi(get: Get) -> Policy:
    from ..serve.interop.peer_server import AHEAD, PEER, PeerServer

    server = get("kept")(contextlib.closing(PeerServer(lambda request: AHEAD)))
    return get("kept")(OpenpiPolicy(server.address, PeerMapping(PEER, ONE_AXIS)))


def groot(generation: Generation) -> Callable[[Get], Policy]:
    def make(get: Get) -> Policy:
        from ..serve.interop.groot_server import PEERS, GrootServer

        server, peer = get("kept")(contextlib.closing(GrootServer(generation))), PEERS[generation]
        return get("kept")(GrootPolicy(server.address, PeerMapping(peer, ONE_AXIS), generation, prompt=peer.prompt))

    return make


def openvla(get: Get) -> Policy:
    pytest.importorskip("torch")
    from vla_robot.policy.openvla.policy import load

    return load(get("tiny"))


def vlm(family: str) -> Callable[[Get], Policy]:
    def make(get: Get) -> Policy:
        pytest.importorskip("torch")
        from vla_robot.policy.families import family_of

        from ..policy.vlm.tiny_vlms import create

        folder = create(get("tmp_path") / family, family, use_state=True)
        return family_of(folder).load(folder)

    return make


def with_head(family: str, head: Any) -> Callable[[Get], Policy]:
    def make(get: Get) -> Policy:
        pytest.importorskip("torch")
        from vla_robot.policy.families import family_of
        from vla_robot.recipe.finetune import HeadRecipe

        from ..policy.vlm.tiny_vlms import create

        folder = create(get("tmp_path") / family, family, use_state=True, head=HeadRecipe(head))
        return family_of(folder).load(folder)

    return make


def onnx(get: Get) -> Policy:
    pytest.importorskip("onnxscript")
    from vla_robot.policy.onnx.policy import OnnxPolicy

    return OnnxPolicy(get("graphs"))


def oft(get: Get) -> Policy:
    pytest.importorskip("torch")
    from vla_robot.policy.openvla.oft import load_oft

    from ..policy.openvla.tiny_policies import OFT, publish

    return load_oft(publish(get("tiny"), get("tmp_path")), OFT)


def lerobot(get: Get) -> Policy:
    pytest.importorskip("lerobot")
    from vla_robot.policy.kinds import load_policy
    from vla_robot.recipe.policy import LeRobotRecipe

    from ..policy.lerobot.lerobot_folders import act_config, features, save

    return load_policy(LeRobotRecipe(checkpoint=save(act_config(**features()), get("tmp_path") / "act")), TWO_EYED)


KINDS: dict[str, Kind] = {
    "HoldPolicy": Kind(lambda get: HoldPolicy(ARM.action)),
    "RandomPolicy": Kind(lambda get: RandomPolicy(ARM.action), batched=False),
    "ReachPolicy": Kind(lambda get: ReachPolicy(ARM, [[0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 1.0]]), batched=False),
    "ReplayPolicy": Kind(lambda get: ReplayPolicy({"lift the cube": np.zeros((3, len(ARM.action)))}, Path("demos"))),
    "ScriptedExpert": Kind(lambda get: ScriptedExpert(lift, ARM.action)),
    "PerturbedPolicy": Kind(lambda get: PerturbedPolicy(MOVES, ARM.action, Perturbation()), batched=False),
    "ObservationAdapter": Kind(lambda get: ObservationAdapter(MOVES, WANTED, ARM)),
    "ExecutionHorizon": Kind(lambda get: ExecutionHorizon(MOVES, 2)),
    "MirroredFrames": Kind(lambda get: MirroredFrames(MOVES)),
    "WithoutTruth": Kind(lambda get: WithoutTruth(MOVES)),
    "Takeover": Kind(lambda get: Takeover(MOVES, ScriptedTeleoperator(), ARM, row_by_row=False), batched=False),
    "FunctionPolicy": Kind(lambda get: MOVES),
    "PolicySeat": Kind(lambda get: get("kept")(SharedPolicy(MOVES, max_batch=4)).seat()),
    "RemotePolicy": Kind(lambda get: get("remote_policy")),
    "OpenpiPolicy": Kind(openpi, ONE_AXIS, ()),
    **{f"GrootPolicy of {generation}": Kind(groot(generation), ONE_AXIS, ()) for generation in get_args(Generation)},
    "LeRobotPolicy": Kind(lerobot, TWO_EYED, tuple(map(lerobot_observation, range(3))), tolerance=1e-6),
    "OpenVLAPolicy": Kind(openvla, seen=TWO_CAMERAS),
    "OpenVLAPolicy of minivla": Kind(vlm("minivla"), seen=TWO_CAMERAS),
    **{f"VLAPolicy of {family}": Kind(vlm(family), seen=TWO_CAMERAS) for family in FAMILIES if family != "openvla"},
    # Attention over padding, and arithmetic of another batch size, round otherwise.
    "HeadPolicy L1Head": Kind(with_head("qwen2_vl", "l1"), seen=TWO_CAMERAS, tolerance=1e-5),
    "HeadPolicy FlowHead": Kind(with_head("paligemma", "flow"), seen=TWO_CAMERAS, tolerance=1e-5),
    # Arithmetic of another batch size rounds otherwise.
    "OnnxPolicy": Kind(onnx, seen=TWO_CAMERAS, tolerance=1e-6),
    "OFTPolicy": Kind(oft, seen=TWO_CAMERAS, tolerance=1e-6),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a new OpenVLA policy."""
    from ..policy.openvla.tiny_policies import create_policy

    return create_policy(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def graphs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head, exported as one graph. tests/policy/onnx asks one that says tokens."""
    from vla_robot.policy.onnx.export.write import Choices, export
    from vla_robot.recipe.policy import OpenVLAOFTRecipe

    from ..policy.openvla.tiny_policies import OFT, publish

    recipe = OpenVLAOFTRecipe(checkpoint=publish(tiny, tmp_path_factory.mktemp("oft")), oft=OFT)
    folder = tmp_path_factory.mktemp("graphs")
    export(folder, "oft", recipe, Choices(rows=(2,), text=(32,)), lambda line: None)
    return folder


@pytest.fixture
def kept() -> Iterator[Callable[[contextlib.AbstractContextManager[Any]], Any]]:
    """Enters contexts until the test ends."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture
def remote_policy() -> Iterator[RemotePolicy]:
    """The client of a server of MOVES."""
    batcher, wake, stop = Batcher(_answers, Line(8, 2_000_000)), Wake(), threading.Event()
    with ServerSocket(wake=wake) as socket:
        model = answering(batcher)
        server = PolicyServer(Served("toy", ARM, 8), batcher, socket, wake)
        network = threading.Thread(target=server.serve, args=(stop.is_set,))
        network.start()
        try:
            with RemotePolicy(socket.address) as policy:
                yield policy
        finally:
            stop.set()
            network.join()
            batcher.close()
            model.join()
            wake.close()


def _answers(observations: Sequence[Observation], keys: Sequence[str | None]) -> Any:
    return MOVES.act(observations)


@pytest.mark.parametrize("name", KINDS)
def test_every_policy_keeps_its_contract(name: str, request: pytest.FixtureRequest) -> None:
    kind = KINDS[name]
    make = lambda: as_named(name, kind.make(request.getfixturevalue))  # noqa: E731 - named for the reader
    check_policy(make, kind.arm, kind.seen, tolerance=kind.tolerance, batched=kind.batched)


def test_an_embodiment_of_another_width_is_told_from_this_one() -> None:
    """Lest a check that looks at nothing passes for a policy of any arm."""
    narrow: Embodiment = toy_embodiment()
    with pytest.raises(Exception, match=r"where D is 2"):
        check_policy(lambda: HoldPolicy(ARM.action), narrow)
