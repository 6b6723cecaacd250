"""PolicyRecipe: a policy and its settings, with one dataclass for each kind."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from vla_robot.core.errors import RecipeError
from vla_robot.core.host.device_names import AUTO, device_problem
from vla_robot.recipe.peer import GrootPeerRecipe, LeRobotNumbersRecipe, PeerRecipe
from vla_robot.recipe.reading.kinds import Kinds
from vla_robot.recipe.reading.renamed import tell

ADDRESS_SCHEMES = ("tcp://", "ipc://")
"""Prefixes of the address of a policy server."""


@dataclass(frozen=True)
class OFTRecipe:
    """Settings that an OpenVLA-OFT checkpoint folder does not contain.

    Attributes:
        chunk: actions per answer; upstream: LIBERO 8, ALOHA 25, Bridge 5.
        action_dim: numbers per action; LIBERO 7, ALOHA 14, Bridge 7.
        normalisation: "bounds_q99" maps the 1 % and 99 % quantiles to -1 and +1 (LIBERO, Bridge); "bounds" the
            smallest and largest value (ALOHA).
        cameras: names in the order of training: the third-person camera first, then those on the wrists.
        proprio_dim: size of the arm's state that the policy reads; LIBERO 8, ALOHA 14, Bridge 7. Leave it out for a
            policy that does not read the state.
        clip: cut actions to [-1, 1], the bounds of the data, as folders trained here ask for; upstream does not.
    """

    chunk: int
    action_dim: int
    normalisation: Literal["bounds_q99", "bounds"]
    cameras: tuple[str, ...]
    proprio_dim: int | None = None
    clip: bool = False

    def __post_init__(self) -> None:
        sizes = {"chunk": self.chunk, "action_dim": self.action_dim, "proprio_dim": self.proprio_dim}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise RecipeError(f"{name} must be at least 1, got {value}")
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise RecipeError(f"cameras must be different names, at least one, got {list(self.cameras)}")


@dataclass(frozen=True)
class FlowRecipe:
    """How a policy with a flow-matching head answers.

    Attributes:
        steps: integration steps from noise to actions: more are slower.
        rtc: how an answer continues what the arm executes meanwhile: "guidance", "prefix" for a head that was trained
            with one, or "none"; without it, by the prefix if there is one, else by guidance.
        max_guidance: of guidance: most that a difference to the plan counts in a step.
        jacobian: of guidance: compute how the finished actions depend on the noised ones, as the paper does, for the
            price of a backward pass in each step; false takes the identity, as lerobot does.
    """

    steps: int = 10
    rtc: Literal["guidance", "prefix", "none"] | None = None
    max_guidance: float = 10.0
    jacobian: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise RecipeError(f"steps is {self.steps}; must lie in [1, 1000]")
        if not 0 < self.max_guidance < math.inf:
            raise RecipeError(f"max_guidance is {self.max_guidance:g}; must be above 0")


@dataclass(frozen=True, kw_only=True)
class PolicyRecipe:
    """A policy as data. These keys are common to all kinds; `kind` chooses the dataclass.

    Attributes:
        kind: kind of policy; `vla list policies` shows recipes of each.
        description: one line for `vla list`.
        rows: execution horizon: how many actions of an answer are used before the policy is asked again; without it, as
            the policy says: most use all. `--rows` of `vla run` and `vla eval` overrides it.
    """

    kinds: ClassVar[Kinds[PolicyRecipe]]
    is_privileged: ClassVar[bool] = False
    """Whether it reads the simulator's state; other policies get only cameras and the arm's state."""

    sees: ClassVar[bool] = True
    """Whether it may look at frames; for others they need not be rendered."""

    kind: str
    description: str = ""
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise RecipeError(f"rows must be at least 1, got {self.rows}")

    @property
    def preparation(self) -> str:
        """What becomes of the world's frames before the policy sees them, in words; empty if the recipe does not say.

        It is a part of a benchmark's protocol that the policy brings along.
        """
        return ""


@dataclass(frozen=True, kw_only=True)
class WeightsRecipe(PolicyRecipe):
    """A policy with weights in a folder, which runs in this process and can be served.

    Attributes:
        checkpoint: the folder, relative to this file.
        mirror: exchange left and right of the world's frames before any other processing. Needed by policies trained on
            LIBERO's published data, whose frames are turned by 180 degrees against upside-down ones: mirrored.
        device: where the weights are: "cpu", "cuda", "cuda:1", "mps"; "auto" takes a GPU of CUDA if there is one.
            `--device` of a command overrides it.
    """

    checkpoint: Path
    mirror: bool = False
    device: str = AUTO

    def __post_init__(self) -> None:
        super().__post_init__()
        if problem := device_problem(self.device):
            raise RecipeError(problem)

    @property
    def preparation(self) -> str:
        return "mirrored" if self.mirror else "as the world shows them"

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Cameras in the policy's order, if the recipe names them because the folder does not; else empty."""
        return ()


@dataclass(frozen=True, kw_only=True)
class CheckpointRecipe(WeightsRecipe):
    """A vision-language-action policy, in the published layout of its family.

    Attributes:
        checkpoint: folder in the published layout of its family, relative to this file.
        statistics_key: dataset whose statistics un-normalise the actions; needed when the checkpoint has several.
        dtype: precision of the weights while acting.
        image_preprocessing: preprocessing of a frame before the towers' own resize. "none": none, as on OpenVLA's model
            card; "rlds": JPEG and back, then Lanczos to the towers' size, as its training data was stored (Bridge);
            "rlds_crop": then the middle 0.9 of the area, for checkpoints trained with augmentation (LIBERO).
    """

    statistics_key: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    image_preprocessing: Literal["none", "rlds", "rlds_crop"] = "none"

    @property
    def preparation(self) -> str:
        words = {"none": "", "rlds": "JPEG and back", "rlds_crop": "JPEG and back, the middle 0.9 of the area"}
        return ", ".join(filter(None, (super().preparation, words[self.image_preprocessing])))


@dataclass(frozen=True, kw_only=True)
class FamilyRecipe(CheckpointRecipe):
    """A policy of a family of models, by tokens or by a head; it may be compiled, or take less memory.

    Attributes:
        compiled: compile a graph for each shape of batch: faster, but the first inference takes a minute, and a CPU
            needs a C++ compiler; for tokens.
        quantise: "fp8", "int8" or "int4" quantises matrices: a quarter or an eighth of fp32's memory, and some tokens
            differ. int8 and int4 need the extra [quantise]; fp8 is for GPUs of compute capability 8.9 or more, and
            rounds activations too.
        fuse: true joins the work between matrix products into one kernel each, which the compiler of `compiled` makes
            for all shapes of batches; without the key, it is done on a GPU of CUDA with triton.
        flow: how a flow-matching head answers; only for a folder that has one.
    """

    compiled: bool = False
    quantise: Literal["fp8", "int8", "int4"] | None = None
    fuse: bool | None = None
    flow: FlowRecipe | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantise and self.compiled:
            raise RecipeError("quantise and compiled = true exclude each other; leave one of them out")
        if self.fuse and self.compiled:
            raise RecipeError("compiled = true fuses everything; leave fuse out")


@dataclass(frozen=True, kw_only=True)
class VLARecipe(FamilyRecipe):
    """Loads a checkpoint folder of another vision-language model: its config.json names the family."""

    kind: Literal["vla"] = "vla"


@dataclass(frozen=True, kw_only=True)
class OpenVLARecipe(FamilyRecipe):
    """Loads a checkpoint folder of OpenVLA."""

    kind: Literal["openvla"] = "openvla"


@dataclass(frozen=True, kw_only=True)
class OpenVLAOFTRecipe(CheckpointRecipe):
    """Loads a checkpoint folder with OpenVLA-OFT's regression head.

    Attributes:
        oft: settings that the folder does not contain.
        fuse: as for kind "openvla".
    """

    kind: Literal["openvla_oft"] = "openvla_oft"
    oft: OFTRecipe
    fuse: bool | None = None

    @property
    def camera_names(self) -> tuple[str, ...]:
        return self.oft.cameras


@dataclass(frozen=True, kw_only=True)
class OnnxRecipe(WeightsRecipe):
    """Runs a folder that `vla export onnx` wrote, without torch; see docs/edge.md.

    Attributes:
        checkpoint: the folder, relative to this file.
        provider: what runs the graphs: "cpu", or one that an installation of onnxruntime has: "openvino", "cuda",
            "tensorrt", "coreml". It takes the place of `device`.
        threads: processor threads of an inference, 0 for the runtime's choice; without it, as the export chose.
        statistics_key: dataset whose statistics un-normalise the actions; without it, as exported.
    """

    kind: Literal["onnx"] = "onnx"
    provider: Literal["cpu", "openvino", "cuda", "tensorrt", "coreml"] = "cpu"
    threads: int | None = None
    statistics_key: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device not in (AUTO, self.provider):
            raise RecipeError(
                f"device is '{self.device}', but a policy of kind 'onnx' runs where its recipe's `provider` says: "
                f"'{self.provider}'. Leave device out, or set provider"
            )
        if self.threads is not None and not 0 <= self.threads <= 1024:
            raise RecipeError(f"threads must be 0 to 1024, got {self.threads}")


@dataclass(frozen=True, kw_only=True)
class LeRobotRecipe(WeightsRecipe):
    """Runs a policy that lerobot trained: ACT, Diffusion Policy, SmolVLA, pi0 or pi0.5; see docs/lerobot.md.

    Attributes:
        checkpoint: lerobot's folder `pretrained_model`, relative to this file.
        embodiment: description of the arm of its training: the dataset's meta/embodiment.json, relative to this file.
            Without it, the folder's own embodiment.json; without that, sizes, names and ranges alone are compared.
        rate_hz: control rate of its training, where no embodiment says it.
        cameras: the policy's image -> the arm's camera, where their names differ: top = "front".
        resize: resize frames to the size of its training, as `vla record --image-size` did; without it a camera of
            another size is refused, except by families that resize frames themselves.
        state: the arm's state that the policy reads; without it, all of it in the arm's order and units.
        action: the arm's dimensions that the policy's numbers are for; without it, in the arm's order and units.
        hub: name on the hub -> local folder with the tokenizer, or the configuration of the vision-language model.
            Nothing is downloaded; without an entry, the local cache of the hub is searched.
    """

    kind: Literal["lerobot"] = "lerobot"
    embodiment: Path | None = None
    rate_hz: float | None = None
    cameras: dict[str, str] = field(default_factory=dict[str, str])
    resize: bool = False
    state: LeRobotNumbersRecipe | None = None
    action: LeRobotNumbersRecipe | None = None
    hub: dict[str, Path] = field(default_factory=dict[str, Path])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate_hz is not None and not 1 <= self.rate_hz <= 1000:
            raise RecipeError(f"rate_hz {self.rate_hz:g} is outside 1 to 1000")
        if len(set(self.cameras.values())) != len(self.cameras):
            raise RecipeError(f"cameras names a camera twice: {', '.join(self.cameras.values())}")


@dataclass(frozen=True, kw_only=True)
class HoldRecipe(PolicyRecipe):
    """Holds the arm's pose."""

    sees: ClassVar[bool] = False

    kind: Literal["hold"] = "hold"


@dataclass(frozen=True, kw_only=True)
class RandomRecipe(PolicyRecipe):
    """Draws uniform actions, as a baseline."""

    sees: ClassVar[bool] = False

    kind: Literal["random"] = "random"


@dataclass(frozen=True, kw_only=True)
class ExpertRecipe(PolicyRecipe):
    """The world's scripted expert, which reads the simulator's state."""

    is_privileged: ClassVar[bool] = True
    sees: ClassVar[bool] = False

    kind: Literal["expert"] = "expert"


@dataclass(frozen=True, kw_only=True)
class ReplayRecipe(PolicyRecipe):
    """Repeats a recorded demonstration of the task, action by action, without looking: a baseline.

    Attributes:
        data: LeRobot dataset of `vla record`, of the same arm and rate.
        episode: index of the demonstration; without it, the first successful one of the episode's instruction.
    """

    sees: ClassVar[bool] = False

    kind: Literal["replay"] = "replay"
    data: Path
    episode: int | None = None


@dataclass(frozen=True, kw_only=True)
class WaypointsRecipe(PolicyRecipe):
    """Moves the tool from pose to pose.

    Attributes:
        poses: poses in order: x, y, z [m] and axis times angle [rad] of the tool in the base frame, and the
            gripper, 1 open.
        relative: poses are relative to the tool's pose at the start of the episode.
    """

    sees: ClassVar[bool] = False

    kind: Literal["reach"] = "reach"
    poses: tuple[tuple[float, float, float, float, float, float, float], ...] = ()
    relative: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.poses:
            raise RecipeError("kind 'reach' needs poses, at least one")


@dataclass(frozen=True, kw_only=True)
class RemoteRecipe(PolicyRecipe):
    """A policy served by `vla serve`.

    Attributes:
        address: its address, e.g. "tcp://127.0.0.1:5580".
        statistics_key: dataset whose statistics un-normalise the actions; needed when the checkpoint has several.
    """

    kind: Literal["remote"] = "remote"
    address: str
    statistics_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class _PeerPolicyRecipe(PolicyRecipe):
    """A policy behind a server of another project."""

    address: str
    peer: PeerRecipe

    def __post_init__(self) -> None:
        """Move `rows` from its former place in the table [peer]."""
        if self.peer.rows is not None:
            if self.rows is not None:
                raise RecipeError("rows is there twice; delete the one in the table [peer]")
            tell(
                "the key 'rows' of a table [peer] is the policy's own now, above the table; the old place works for "
                "one more release."
            )
            object.__setattr__(self, "rows", self.peer.rows)
            object.__setattr__(self, "peer", replace(self.peer, rows=None))
        super().__post_init__()

    @property
    def preparation(self) -> str:
        return "; ".join(f"{image.camera} {image.preparation}" for image in self.peer.images)


@dataclass(frozen=True, kw_only=True)
class OpenpiRecipe(_PeerPolicyRecipe):
    """A policy served by openpi.

    Attributes:
        address: its address, e.g. "ws://127.0.0.1:8000".
        peer: the server's keys and units; see docs/serving.md.
    """

    kind: Literal["openpi"] = "openpi"


@dataclass(frozen=True, kw_only=True)
class GrootRecipe(_PeerPolicyRecipe):
    """A policy served by GR00T.

    Attributes:
        address: its address, e.g. "tcp://127.0.0.1:5555".
        peer: the server's keys and units; see docs/serving.md.
    """

    kind: Literal["groot"] = "groot"
    address: str
    peer: GrootPeerRecipe


PolicyRecipe.kinds = Kinds(
    "policy",
    PolicyRecipe,
    (
        OpenVLARecipe,
        OpenVLAOFTRecipe,
        VLARecipe,
        OnnxRecipe,
        LeRobotRecipe,
        HoldRecipe,
        RandomRecipe,
        ExpertRecipe,
        RemoteRecipe,
        OpenpiRecipe,
        GrootRecipe,
        WaypointsRecipe,
        ReplayRecipe,
    ),
    groups=("vla_robot.policies",),
)
