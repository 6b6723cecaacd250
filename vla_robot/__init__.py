"""The control stack that puts a vision-language-action policy on a robot.

>>> import vla_robot
>>> policy = vla_robot.load_policy("policies/openvla_nano")    # doctest: +SKIP
>>> chunks = policy.act([observation])                         # doctest: +SKIP

The command line does the same and more: `vla --help`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vla_robot.core.host.renamed import takes_old_names

if TYPE_CHECKING:
    import torch

    from vla_robot.policy.vla.policy import AnyVLAPolicy

__all__ = ["load_policy"]

if "gymnasium" in sys.modules:  # a program without Gymnasium does not pay for its import
    from vla_robot.world.sim.gym_env import register_all

    register_all()


@takes_old_names
def load_policy(
    folder: str | Path,
    dtype: Literal["float32", "bfloat16", "float16"] | torch.dtype = "float32",
    device: str | torch.device = "auto",
    statistics_key: str | None = None,
    image_preprocessing: Literal["none", "rlds", "rlds_crop"] = "none",
    compiled: bool = False,
    quantise: Literal["fp8", "int8", "int4"] | None = None,
) -> AnyVLAPolicy:
    """Load a checkpoint of any family, ready to act.

    Args:
        folder: of the published layout of its family: config.json, safetensors, preprocessor_config.json,
            tokenizer.json, and dataset_statistics.json, which replaces the statistics in config.json of OpenVLA.
        dtype: precision of the weights, by name or as torch's own object.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps", or torch's own object. "auto" takes a GPU of CUDA if torch
            sees one, else the CPU; `policy.device` says which.
        statistics_key: dataset whose statistics un-normalise the actions; needed when the checkpoint has several.
        image_preprocessing: preprocessing of frames before the towers' own resize; "rlds_crop" for checkpoints that
            were trained with augmentation, "rlds" for others whose evaluation resized frames as RLDS data. See
            docs/openvla.md.
        compiled: compile a graph for each shape of batch; the first inference of a shape takes a minute.
        quantise: quantise the matrices while loading; some tokens differ.

    Returns:
        A policy: `act(observations) -> list[ActionChunk]` takes any number of observations in one batch. OpenVLA's
        `generate_tokens(images, input_ids) -> (B, action_dim)` calls the bare model.

    Raises:
        CheckpointError: the folder is incomplete or damaged, or its model ignores its image.
        ContractError: the precision, the device or image_preprocessing is unknown, or the device is not there.
        PolicyError: the family or the device cannot be compiled or quantised.
        MissingDependencyError: the extra [policy] or [quantise] is not installed.
    """
    from vla_robot.core.host.optional import require

    for distribution in ("torch", "transformers", "timm"):
        require(distribution, "policy", "a vision-language-action policy")
    from vla_robot.policy.families import family_of
    from vla_robot.policy.vla.loading import Loading

    how = Loading(
        dtype=dtype,
        device=device,
        statistics_key=statistics_key,
        image_preprocessing=image_preprocessing,
        compiled=compiled,
        quantise=quantise,
    )
    return family_of(Path(folder)).load(Path(folder), how)
