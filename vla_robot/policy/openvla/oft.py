"""OpenVLA-OFT as a Policy: OpenVLA's towers, projector, prompt and decoder, with a regression head.

A published folder holds component files besides the merged OpenVLA (`components`). What it does not state (chunk
length, action and state sizes, cameras, normalisation) is in the recipe; upstream guesses it from words of the command
line. A folder that was trained here states the sizes too, and a recipe that differs is refused.

Source: moojink/openvla-oft @213c5ff8, experiments/robot/openvla_utils.py and prismatic/vla/constants.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.errors import CheckpointError, PolicyError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.normalise import BOUNDS, EPSILON, QuantileStats, unnormalise
from vla_robot.policy.device import choose_attention
from vla_robot.policy.openvla.checkpoint import OpenVLACheckpoint, read_checkpoint
from vla_robot.policy.openvla.components import (
    ACTION_HEAD,
    PROPRIO_PROJECTOR,
    component_file,
    component_files,
    read_component,
)
from vla_robot.policy.openvla.engine.chunk_regression import ChunkRegression
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.parallel_decoding import ParallelGenerator
from vla_robot.policy.openvla.network.reason import Decoder
from vla_robot.policy.openvla.weights import load_model, require_complete
from vla_robot.policy.vla.codecs.rows import finite_actions
from vla_robot.policy.vla.heads.l1 import L1Head
from vla_robot.policy.vla.inputs.image_preprocessing import NONE
from vla_robot.policy.vla.inputs.observations import Batch, ObservationReader, check_image_sensitivity
from vla_robot.policy.vla.inputs.reader import chunks_of, require_observations
from vla_robot.policy.vla.inputs.statistics import Keys, Statistics, require_dimension, require_statistics
from vla_robot.policy.vla.inputs.upload import pixels_on
from vla_robot.policy.vla.loading import PLAIN, Loading
from vla_robot.policy.vla.proprio import ProprioProjector
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.recipe.policy import OFTRecipe

DESCRIBED = "the recipe's [oft]"
REFUSED = {
    "noisy_action_projector": "its action head is a diffusion model; only the L1 head is supported.",
    "vision_backbone": "its towers are steered by the instruction (FiLM), which is not supported.",
}
"""Component files of the other OFT variants. Without these components, actions would look plausible but be wrong."""


class OFTPolicy:
    """A loaded OpenVLA-OFT checkpoint that answers a chunk at a time.

    Attributes:
        embodiment: the arm the policy was trained for, or None for a published checkpoint, which does not say.
        model: towers, projectors and language model.
        oft: sizes, cameras and normalisation.
        preprocessor: turns frames into the model's pixels.
        statistics: dataset name -> statistics of actions (and of the state).
        read: makes the batch that `predict` takes from observations.
        regression: the bare inference; its `in_blocks` is that of other policies.
    """

    def __init__(
        self,
        model: OpenVLA,
        head: L1Head,
        checkpoint: OpenVLACheckpoint,
        oft: OFTRecipe,
        statistics_key: str | None = None,
        fuse: bool = False,
    ) -> None:
        """
        Args:
            model: with the number of images and state numbers that `oft` states.
            head: L1 head of the language model's width and `oft.action_dim`.
            checkpoint: tokenizer, preprocessor and statistics.
            oft: sizes, cameras and normalisation.
            statistics_key: dataset whose statistics un-normalise the actions; required if there are several.
            fuse: compile the work between matrix products.

        Raises:
            CheckpointError: there is no tokenizer.
        """
        self.model = model
        self.oft = oft
        self.embodiment = checkpoint.embodiment
        self.preprocessor = checkpoint.preprocessor
        choose_attention(model.weight.device)
        self._pixels = pixels_on(model.weight.device, checkpoint.preprocessor)
        self.statistics: Mapping[str, Mapping[str, Any]] = checkpoint.config.norm_stats
        self._statistics = Statistics(self.statistics, statistics_key, BOUNDS[oft.normalisation])
        self.read = ObservationReader(
            model.config.inputs, self._pixels, checkpoint.tokenizer, self._statistics, oft.cameras
        )
        decoder = model.reasoner()
        assert isinstance(decoder, Decoder)  # `load_oft` raises for other language models
        generator = ParallelGenerator(decoder, head, oft.chunk, oft.action_dim, self.read.tokenizer.eos)
        self.regression = ChunkRegression(model, generator)
        if fuse:
            model.fuse()
            decoder.fuse()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.weight.device

    @property
    def prepares_ahead(self) -> bool:
        """See `core.ports.PreparesAhead`."""
        return self.device.type == "cuda"

    def prepare(self, observation: Observation) -> Observation:
        """See `core.ports.PreparesAhead`."""
        return self.read.prepare(observation)

    def reset(self, seed: int) -> None:
        """Do nothing: regression from single observations has no memory and no randomness."""

    def act(self, observations: Sequence[Observation], statistics_keys: Keys | None = None) -> list[ActionChunk]:
        """Return one chunk of `oft.chunk` actions per observation, computed in one batch.

        Args:
            observations: with any instructions.
            statistics_keys: per row, the dataset whose statistics un-normalise; None for the policy's own.

        Raises:
            ContractError: a camera, the state, the instruction or the statistics do not fit.
            PolicyError: the model's output is not finite.
        """
        stages = self.model.timer()
        require_observations(observations)
        stats = self._statistics.rows("action", len(observations), statistics_keys)
        require_dimension(stats, self.oft.action_dim, f"the recipe says action_dim = {self.oft.action_dim}")
        batch = self.read(observations, statistics_keys)
        stages.lap("preprocess")
        normalised = self.predict(batch, stages)
        actions = [unnormalise(chunk, s, EPSILON) for chunk, s in zip(normalised, stats, strict=True)]
        stages.lap("unnormalise")
        return chunks_of(actions, observations, stages)

    def predict(self, batch: Batch, stages: StageTimer | None = None) -> NDArray[np.float64]:
        """Run the bare model on a batch of plain prompts: return (B, K, D) normalised actions.

        Raises:
            PolicyError: a number is not finite.
        """
        actions = self.regression(batch, stages or StageTimer()).cpu().double().numpy()  # MPS has no float64
        return finite_actions(actions, self.oft.clip)

    def state_stats(self) -> QuantileStats:
        """Return the statistics that normalise the arm's state. Raises ContractError if there are none."""
        return self._statistics.of("proprio")

    def self_test(self) -> None:
        """Raise CheckpointError if the model ignores its image or its actions are not finite."""
        check_image_sensitivity(
            self.model.config.inputs,
            self.model.config.frame,
            self.preprocessor,
            self._pixels,
            lambda batch: torch.from_numpy(self.predict(batch)),
        )


def load_oft(folder: Path, oft: OFTRecipe, how: Loading = PLAIN) -> OFTPolicy:
    """Load a policy from a folder in OpenVLA-OFT's published layout.

    Args:
        folder: a merged OpenVLA checkpoint with the component files beside it.
        oft: what the folder does not state.
        how: precision, device, and what is done to the weights.

    Raises:
        CheckpointError: the folder is incomplete or damaged, fails the self-test, does not fit the recipe, or is of a
            variant that is not supported.
        PolicyError: it is to be compiled or quantised, or kernels cannot be compiled here.
    """
    if how.compiled or how.quantise:
        raise PolicyError("OpenVLA-OFT is neither compiled nor quantised: leave both out.")
    at = how.placement()
    checkpoint = read_checkpoint(folder, how.image_preprocessing)
    _refuse_other_variants(folder, checkpoint.config)
    config = _sized(folder, checkpoint.config, oft)
    llm_dim = int(config.text_config.get("hidden_size", 4096))
    with torch.device("meta"):
        head = L1Head(llm_dim, oft.action_dim)
    head.load_state_dict(read_component(folder, ACTION_HEAD, head, DESCRIBED), assign=True)
    beside = _proprio(folder, oft.proprio_dim, llm_dim)
    model = load_model(folder, config, at.precision, at.device, beside, acting=not how.trainable)
    head = head.to(device=at.device, dtype=at.precision).requires_grad_(False).eval()
    policy = OFTPolicy(model, head, checkpoint, oft, how.statistics_key, at.fused)
    if at.has_weights:
        policy.self_test()
    return policy


def check_oft(folder: Path, oft: OFTRecipe, statistics_key: str | None = None, image_preprocessing: str = NONE) -> None:
    """Check a folder as `policy.check` does, in OpenVLA-OFT's layout; component files are located, not read.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit config.json.
        ContractError: the statistics key or image_preprocessing is unknown.
    """
    checkpoint = read_checkpoint(folder, image_preprocessing)
    _refuse_other_variants(folder, checkpoint.config)
    components = [ACTION_HEAD] if oft.proprio_dim is None else [ACTION_HEAD, PROPRIO_PROJECTOR]
    for component in components:
        component_file(folder, component)
    require_statistics(Statistics(checkpoint.config.norm_stats, statistics_key, BOUNDS[oft.normalisation]))
    config = _sized(folder, checkpoint.config, oft)
    require_complete(folder, config, beside=(f"{PROPRIO_PROJECTOR}.",))


def _sized(folder: Path, config: OpenVLAConfig, oft: OFTRecipe) -> OpenVLAConfig:
    """Return the configuration with the recipe's sizes and without a head of its own, which is read apart.

    Raises:
        CheckpointError: the folder states other sizes than the recipe.
    """
    if config.head is not None:
        if config.head.kind != "l1":
            raise CheckpointError(f'{folder} has the head "{config.head.kind}"; load it with kind = "openvla".')
        stated = (config.chunk, config.head.dimension, config.num_images, config.proprio_dim)
        said = (oft.chunk, oft.action_dim, len(oft.cameras), oft.proprio_dim)
        names = ("chunk", "action_dim", "number of cameras", "proprio_dim")
        both = zip(names, stated, said, strict=True)
        if wrong := [f"{name} is {now}, but was {then} in training" for name, then, now in both if then != now]:
            raise CheckpointError(f"{folder} does not fit {DESCRIBED}: {'; '.join(wrong)}.")
    return replace(config, num_images=len(oft.cameras), proprio_dim=oft.proprio_dim, head=None)


def _refuse_other_variants(folder: Path, config: OpenVLAConfig) -> None:
    if config.text_type != "llama":
        raise CheckpointError(f"{folder}: the language model is {config.text_type}; OpenVLA-OFT's is a Llama.")
    for component, reason in REFUSED.items():
        found = component_files(folder, component)
        if found:
            raise CheckpointError(f"{folder} holds {found[0].name}: {reason}")


def _proprio(folder: Path, proprio_dim: int | None, llm_dim: int) -> dict[str, Tensor]:
    """Return the tensors of the state's projector by module name; empty for a policy that does not read the state."""
    found = component_files(folder, PROPRIO_PROJECTOR)
    if proprio_dim is None:
        if found:
            raise CheckpointError(
                f"{folder} holds {found[0].name}, so the policy reads the arm's state: give [oft] proprio_dim."
            )
        return {}
    with torch.device("meta"):
        projector = ProprioProjector(proprio_dim, llm_dim)
    return {
        f"{PROPRIO_PROJECTOR}.{n}": t
        for n, t in read_component(folder, PROPRIO_PROJECTOR, projector, DESCRIBED).items()
    }
