"""OpenVLA behind the Policy port: observations in, action chunks in physical units out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, ContractError, PolicyError, unknown
from vla_robot.core.messages import ActionChunk, Image, Observation
from vla_robot.core.normalise import QuantileStats, normalise, unnormalise
from vla_robot.policy.openvla.action_tokens import ActionTokenizer
from vla_robot.policy.openvla.config import OpenVLAConfig, read_json
from vla_robot.policy.openvla.generate import Generator
from vla_robot.policy.openvla.model import OpenVLA
from vla_robot.policy.openvla.preprocess import Preprocessor
from vla_robot.policy.openvla.prompt import PromptTokenizer
from vla_robot.policy.openvla.reason import Decoder
from vla_robot.policy.openvla.weights import load_model

log = logging.getLogger(__name__)

LLAMA_SPACE = 29871
"""Llama's id of the space token, for checkpoints that come without a tokenizer."""


@dataclass
class _Stages:
    """Wall time of consecutive stages, in ms."""

    ms: dict[str, float] = field(default_factory=dict[str, float])
    _last: float = field(default_factory=time.perf_counter)

    def done(self, name: str) -> None:
        """Book the time since the last stage under `name`."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.ms[name] = self.ms.get(name, 0.0) + (now - self._last) * 1e3
        self._last = now


class OpenVLAPolicy:
    """A loaded checkpoint that acts.

    Attributes:
        embodiment: what the policy was trained to drive, or None for a published checkpoint, which does not say.
        statistics: dataset name -> statistics of actions (and of the state).
        preprocessor: frames to tower inputs.
        action_tokens: normalised actions to token ids and back.
    """

    def __init__(
        self,
        model: OpenVLA,
        preprocessor: Preprocessor,
        tokenizer: PromptTokenizer | None,
        statistics: Mapping[str, Mapping[str, Mapping[str, object]]],
        embodiment: Embodiment | None = None,
        statistics_key: str | None = None,
    ) -> None:
        self.model = model
        self.embodiment = embodiment
        self.statistics = statistics
        self.preprocessor = preprocessor
        self._tokenizer = tokenizer
        self._statistics_key = statistics_key
        config = model.config
        self.action_tokens = ActionTokenizer(config.action_vocab_end, config.n_action_bins)
        self._generator = Generator(
            Decoder(model.language_model),
            model.language_model.model.embed_tokens.weight.detach(),
            model.language_model.lm_head.weight.detach(),
            self.action_tokens.first_id,
            config.action_vocab_end,
        )

    def reset(self, seed: int) -> None:
        """Nothing to forget: greedy decoding of single observations has no memory and no chance."""

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """One action per observation, in one batch.

        Raises:
            ContractError: a camera, the state or the instruction does not fit.
            PolicyError: the model's output is not finite.
        """
        stages = _Stages()
        key = self.resolve_key(self._statistics_key)
        images = [self._camera_images(o) for o in observations]
        prompts = [self.tokenizer(o.instruction) for o in observations]
        state = self._state(observations, key)
        pixels = self.preprocessor(images)
        stages.done("preprocess")
        tokens = self._generate(pixels, prompts, state, len(self.action_stats(key)), stages)
        actions = unnormalise(self.action_tokens.decode(tokens), self.action_stats(key))  # (B, D)
        stages.done("detokenise")
        return [
            ActionChunk(actions=action[None], stamp_ns=o.stamp_ns, step=o.step, stages_ms=stages.ms)
            for action, o in zip(actions, observations, strict=True)
        ]

    def generate_tokens(
        self,
        images: Sequence[Image | Sequence[Image]],
        input_ids: Sequence[NDArray[np.int64]],
        state: NDArray[np.float64] | None = None,
        action_dim: int = 7,
    ) -> NDArray[np.int64]:
        """The bare model, for those who check us.

        Args:
            images: one (H, W, 3) uint8 array per row, or one per camera and row.
            input_ids: one 1-D array per row, BOS first; the final space token is added where it is missing.
            state: (B, proprio_dim) normalised, for policies that take it.
            action_dim: how many tokens.

        Returns:
            (B, action_dim) int64 token ids.
        """
        rows = [[row] if isinstance(row, np.ndarray) else list(row) for row in images]
        prompts = [self._finish(ids) for ids in input_ids]
        tensor = None if state is None else torch.from_numpy(np.asarray(state, dtype=np.float32))
        return self._generate(self.preprocessor(rows), prompts, tensor, action_dim, _Stages())

    def first_logits(
        self, images: Sequence[Image | Sequence[Image]], input_ids: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.float32]:
        """(B, 256) logits of the first generated position over the action rows, for those who check us."""
        rows = [[row] if isinstance(row, np.ndarray) else list(row) for row in images]
        prompts = [self._finish(ids) for ids in input_ids]
        with torch.inference_mode():
            embeds, lengths = self._embed(self.preprocessor(rows), prompts, None, _Stages())
            return self._generator.first_logits(embeds, lengths).float().cpu().numpy()

    def resolve_key(self, key: str | None) -> str:
        """The statistics to use; may be left out when there is exactly one dataset.

        Raises:
            ContractError: unknown or ambiguous.
        """
        if key is None:
            if len(self.statistics) == 1:
                return next(iter(self.statistics))
            raise ContractError(
                f"the checkpoint holds statistics of {len(self.statistics)} datasets; name one with statistics_key: "
                f"{', '.join(sorted(self.statistics)) or 'none are there'}."
            )
        if key not in self.statistics:
            raise ContractError(unknown("statistics key", key, self.statistics))
        return key

    def action_stats(self, key: str) -> QuantileStats:
        """Quantiles that turn this dataset's normalised actions into units."""
        return QuantileStats.from_dict(self.statistics[key]["action"])

    def _camera_images(self, observation: Observation) -> list[Image]:
        wanted = [c.name for c in self.embodiment.cameras] if self.embodiment else sorted(observation.images)
        missing = [name for name in wanted if name not in observation.images]
        if missing:
            raise ContractError(unknown("camera", missing[0], observation.images))
        if len(wanted) != self.model.config.num_images:
            raise ContractError(
                f"the policy reads {self.model.config.num_images} camera(s), the observation has {len(wanted)}: "
                f"{', '.join(wanted)}."
            )
        return [observation.images[name] for name in wanted]

    @property
    def tokenizer(self) -> PromptTokenizer:
        """Instructions to ids. Raises CheckpointError when the folder came without a tokenizer."""
        if self._tokenizer is None:
            raise CheckpointError("this checkpoint has no tokenizer.json, so it cannot read instructions.")
        return self._tokenizer

    def _finish(self, input_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._tokenizer is not None:
            return self._tokenizer.finish(input_ids)
        ids = np.asarray(input_ids, dtype=np.int64)
        return ids if ids[-1] == LLAMA_SPACE else np.append(ids, LLAMA_SPACE)

    def _state(self, observations: Sequence[Observation], key: str) -> Tensor | None:
        """(B, proprio_dim) float32, normalised and clipped, or None."""
        dim = self.model.config.proprio_dim
        if dim is None:
            return None
        state = np.stack([o.state for o in observations])
        if state.shape[1] != dim:
            raise ContractError(f"the policy reads {dim} state dimensions, the observation has {state.shape[1]}.")
        if not np.isfinite(state).all():
            raise ContractError("the arm's state holds numbers that are not finite; check the driver.")
        stats = QuantileStats.from_dict(self.statistics[key]["proprio"])
        return torch.from_numpy(normalise(state, stats).astype(np.float32))

    @torch.inference_mode()
    def _generate(
        self, pixels: Tensor, prompts: Sequence[NDArray[np.int64]], state: Tensor | None, dims: int, stages: _Stages
    ) -> NDArray[np.int64]:
        embeds, lengths = self._embed(pixels, prompts, state, stages)
        tokens = self._generator.tokens(embeds, lengths, dims)
        stages.done("decode")
        return tokens.cpu().numpy()

    def _embed(
        self, pixels: Tensor, prompts: Sequence[NDArray[np.int64]], state: Tensor | None, stages: _Stages
    ) -> tuple[Tensor, Tensor]:
        """Perceive and align: (B, S, D) embeddings padded at the right, (B,) lengths."""
        weight = self.model.projector.fc1.weight
        ids, text_lengths = _pad(prompts, self.model.config.pad_token_id)
        state = None if state is None else state.to(weight)
        embeds = self.model.embed(pixels.to(weight), ids.to(weight.device), state)
        stages.done("perceive")
        return embeds, (text_lengths + embeds.shape[1] - ids.shape[1]).to(weight.device)


def _pad(prompts: Sequence[NDArray[np.int64]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths -> (B, L) int64 padded at the right, (B,) lengths."""
    lengths = torch.tensor([len(p) for p in prompts])
    padded = np.full((len(prompts), int(lengths.max())), pad_id, dtype=np.int64)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return torch.from_numpy(padded), lengths


def load(folder: Path, dtype: str = "float32", device: str = "cpu", statistics_key: str | None = None) -> OpenVLAPolicy:
    """A policy from a checkpoint folder in the published layout.

    Args:
        folder: config.json, safetensors, preprocessor_config.json, tokenizer.json; dataset_statistics.json, when
            present, replaces the statistics in config.json, as the reference's deployment does.
        dtype: "float32", "bfloat16" or "float16".
        device: torch device.
        statistics_key: dataset whose statistics un-normalise the actions; needed when there are several.

    Raises:
        CheckpointError: the folder is incomplete, damaged or fails the self-test.
    """
    if not folder.is_dir():
        raise CheckpointError(f"policy folder {folder} does not exist. Run `vla list policies`.")
    config = OpenVLAConfig.read(folder)
    if (folder / "dataset_statistics.json").is_file():
        config = replace(config, norm_stats=read_json(folder / "dataset_statistics.json"))
    model = load_model(folder, config, _dtype(dtype), torch.device(device))
    tokenizer = PromptTokenizer.read(folder) if (folder / "tokenizer.json").is_file() else None
    policy = OpenVLAPolicy(
        model,
        Preprocessor.read(folder, config),
        tokenizer,
        config.norm_stats,
        embodiment=_embodiment(folder),
        statistics_key=statistics_key,
    )
    self_test(policy)
    return policy


def self_test(policy: OpenVLAPolicy) -> None:
    """Raise CheckpointError unless a black and a white image give different logits.

    A model that ignores its image repeats one action for ever; the arm then moves without looking.
    """
    config = policy.model.config
    black = np.zeros((config.image_size, config.image_size, 3), dtype=np.uint8)
    ids = np.array([1, 2, 3], dtype=np.int64)
    frames = [[black] * config.num_images, [black + 255] * config.num_images]
    state = None if config.proprio_dim is None else torch.zeros(2, config.proprio_dim)
    try:
        with torch.inference_mode():
            embeds, lengths = policy._embed(policy.preprocessor(frames), [ids, ids], state, _Stages())
            dark, bright = policy._generator.first_logits(embeds, lengths)
    except PolicyError as error:
        raise CheckpointError(f"self-test failed: {error}") from error
    if torch.equal(dark, bright):
        raise CheckpointError(
            "self-test failed: a black and a white image give the same logits, so the model does not look at its "
            "image. The weights or the preprocessor do not belong to this architecture."
        )


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ContractError(unknown("dtype", name, known))
    return known[name]


def _embodiment(folder: Path) -> Embodiment | None:
    path = folder / "embodiment.json"
    return Embodiment.from_dict(read_json(path)) if path.is_file() else None
