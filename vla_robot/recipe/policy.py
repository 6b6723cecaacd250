"""PolicyRecipe: which policy, and how it is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.peer import PeerRecipe

ADDRESS_SCHEMES = ("tcp://", "ipc://")
"""How the address of a policy server begins."""


@dataclass(frozen=True)
class OFTRecipe:
    """What an OpenVLA-OFT checkpoint folder does not say about itself.

    Attributes:
        chunk: actions per answer; upstream: LIBERO 8, ALOHA 25, Bridge 5.
        action_dim: numbers per action; LIBERO 7, ALOHA 14, Bridge 7.
        normalisation: "bounds_q99" maps the 1 % and 99 % quantiles to -1 and +1 (LIBERO, Bridge); "bounds" the
            smallest and largest value (ALOHA).
        cameras: names in the order of training: the third-person camera first, then those on the wrists.
        proprio_dim: numbers of the arm's state that the policy reads; LIBERO 8, ALOHA 14, Bridge 7. Leave it out for a
            policy that does not read the state.
    """

    chunk: int
    action_dim: int
    normalisation: Literal["bounds_q99", "bounds"]
    cameras: tuple[str, ...]
    proprio_dim: int | None = None

    def __post_init__(self) -> None:
        sizes = {"chunk": self.chunk, "action_dim": self.action_dim, "proprio_dim": self.proprio_dim}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise RecipeError(f"{name} must be at least 1, got {value}")
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise RecipeError(f"cameras must be different names, at least one, got {list(self.cameras)}")


@dataclass(frozen=True)
class PolicyRecipe:
    """A policy as data.

    Attributes:
        kind: "openvla" loads a checkpoint folder; "openvla_oft" one with OpenVLA-OFT's regression head; "hold" keeps
            the arm where it is; "random" draws uniform actions (the baseline that a score is compared with); "expert"
            is the world's own scripted expert, which sees the simulator's truth; "remote" asks a `vla serve`; "openpi"
            and "groot" ask a server of those projects; "reach" goes from pose to pose.
        description: one line for `vla list`.
        checkpoint: folder in the published OpenVLA layout, relative to this file.
        statistics_key: dataset whose statistics un-normalise the actions; needed when the checkpoint has several.
        dtype: precision of the weights while acting.
        pre_step: what happens to a frame before the towers' own resize. "none": nothing, as on OpenVLA's model card;
            "rlds": JPEG and back, then Lanczos to the towers' size, as its training data was stored (Bridge);
            "rlds_crop": then the middle 0.9 of the area, for checkpoints trained with augmentation (LIBERO).
        compiled: for kind "openvla", one compiled graph for each shape of batch: faster, after a first inference that
            takes a minute; on a CPU it needs a C++ compiler.
        quantise: for kind "openvla", "int8" or "int4" keeps matrices in so many bits: a quarter or an eighth of fp32's
            memory, and some tokens differ. They need the extra [quantise].
        oft: for kind "openvla_oft", what the folder does not say.
        address: for kinds that ask a server, where it listens, e.g. "tcp://127.0.0.1:5580"; "ws://127.0.0.1:8000" for
            kind "openpi".
        peer: for kinds "openpi" and "groot", what the server calls things; see docs/serving.md.
        poses: for kind "reach", one after the other: x, y, z [m] and axis times angle [rad] of the tool in the base
            frame, and the gripper, 1 open.
        relative: for kind "reach", the poses are from where the tool is when the episode begins.
    """

    kind: Literal["openvla", "openvla_oft", "hold", "random", "expert", "remote", "openpi", "groot", "reach"]
    description: str = ""
    checkpoint: Path | None = None
    statistics_key: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    pre_step: Literal["none", "rlds", "rlds_crop"] = "none"
    compiled: bool = False
    quantise: Literal["int8", "int4"] | None = None
    oft: OFTRecipe | None = None
    address: str | None = None
    peer: PeerRecipe | None = None
    poses: tuple[tuple[float, float, float, float, float, float, float], ...] = ()
    relative: bool = False

    def __post_init__(self) -> None:
        if self.quantise and (self.kind != "openvla" or self.compiled):
            raise RecipeError("quantise is for kind 'openvla' without compiled = true; leave one of them out")
        learned = self.kind in ("openvla", "openvla_oft")
        if learned != (self.checkpoint is not None):
            raise RecipeError(f"kind '{self.kind}' {'needs' if learned else 'takes no'} checkpoint")
        regresses = self.kind == "openvla_oft"
        if regresses != (self.oft is not None):
            raise RecipeError(f"kind '{self.kind}' {'needs a' if regresses else 'takes no'} table [oft]")
        foreign = self.kind in ("openpi", "groot")
        if foreign != (self.peer is not None):
            raise RecipeError(f"kind '{self.kind}' {'needs a' if foreign else 'takes no'} table [peer]")
        if (self.kind == "reach") != bool(self.poses):
            raise RecipeError(f"kind '{self.kind}' {'needs' if self.kind == 'reach' else 'takes no'} poses")
        remote = foreign or self.kind == "remote"
        if remote != (self.address is not None):
            raise RecipeError(f"kind '{self.kind}' {'needs an' if remote else 'takes no'} address")
        if self.peer and (self.kind == "groot") != (self.peer.generation is not None):
            raise RecipeError(f"kind '{self.kind}' {'needs a' if self.kind == 'groot' else 'takes no'} peer.generation")
