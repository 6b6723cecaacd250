"""How the weights of a folder are loaded: the options that every family takes, and what of them is possible here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from vla_robot.core.errors import PolicyError
from vla_robot.policy.device import torch_device
from vla_robot.policy.vla.checkpoint import torch_dtype
from vla_robot.policy.vla.engine.compiled import require_compiler
from vla_robot.policy.vla.engine.compiler import is_fused
from vla_robot.policy.vla.engine.quantise import require_quantiser
from vla_robot.policy.vla.inputs.image_preprocessing import NONE
from vla_robot.recipe.policy import CheckpointRecipe


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How to load a policy.

    Attributes:
        dtype: "float32", "bfloat16" or "float16", or torch's own object.
        device: name of a device, see `policy.device.torch_device`, or torch's own object. On torch's meta device
            no weights are read, and the policy does not act; buffers that no file has are in main memory.
        statistics_key: dataset whose statistics un-normalise the actions; required if there are several.
        image_preprocessing: preprocessing of frames: "none", "rlds" or "rlds_crop".
        compiled: compile a graph for each shape of batch; the first inference of a shape then takes a minute.
        quantise: "fp8", "int8" or "int4" quantises matrices while loading; the folder keeps plain weights.
        fuse: compile the work between matrix products into one kernel each; None does so on CUDA with triton.
        trainable: store matrices as optimisers and exporters need them, not as acting reads them fastest.
    """

    dtype: str | torch.dtype = "float32"
    device: str | torch.device = "cpu"
    statistics_key: str | None = None
    image_preprocessing: str = NONE
    compiled: bool = False
    quantise: str | None = None
    fuse: bool | None = None
    trainable: bool = False

    @classmethod
    def as_recipe(cls, recipe: CheckpointRecipe) -> Self:
        """Return the loading of a policy that acts as its recipe says."""
        return cls(
            dtype=recipe.dtype,
            device=recipe.device,
            statistics_key=recipe.statistics_key,
            image_preprocessing=recipe.image_preprocessing,
            **{key: getattr(recipe, key) for key in ("compiled", "quantise", "fuse") if hasattr(recipe, key)},
        )

    @classmethod
    def on_cpu(cls, recipe: CheckpointRecipe, *, compiled: bool = False, trainable: bool = False) -> Self:
        """Return the loading of a recipe's policy in fp32 on the CPU, whatever its recipe says of both."""
        return cls(
            statistics_key=recipe.statistics_key,
            image_preprocessing=recipe.image_preprocessing,
            compiled=compiled,
            trainable=trainable,
        )

    def placement(self) -> Placement:
        """Return where the weights come to be: what cannot be is told before gigabytes are read.

        Raises:
            ContractError: the precision or the device is unknown, or the device is not there.
            PolicyError: compiling or quantising is impossible on the device, or the quantisation is unknown.
            MissingDependencyError: quantising needs torchao (int8) or bitsandbytes (int4).
        """
        precision, device = torch_dtype(self.dtype), torch_device(self.device)
        if self.compiled and self.quantise:
            raise PolicyError(COMPILED_AND_QUANTISED)
        if self.quantise is not None:
            require_quantiser(self.quantise, device)
        if self.compiled:
            require_compiler(device)
        return Placement(precision, device, is_fused(self.fuse, device) and not self.compiled)


PLAIN = Loading()
"""In fp32 on the CPU, with nothing done to the weights."""

COMPILED_AND_QUANTISED = "a compiled policy cannot be quantised: set compiled = false, or delete quantise."


@dataclass(frozen=True)
class Placement:
    """Where a model's weights are, and how.

    Attributes:
        precision: of the weights.
        device: of the weights; "meta" for a model without weights.
        fused: whether the work between matrix products becomes one kernel each; never in a compiled policy, whose
            graphs fuse everything.
    """

    precision: torch.dtype
    device: torch.device
    fused: bool

    @property
    def has_weights(self) -> bool:
        """Whether there are weights, so that a policy can be tested."""
        return self.device.type != "meta"
