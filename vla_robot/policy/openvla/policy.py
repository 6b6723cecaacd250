"""OpenVLA as a Policy: turns observations into action chunks in physical units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, PolicyError
from vla_robot.core.messages import ActionChunk, Image, Observation
from vla_robot.core.normalise import QuantileStats, unnormalise
from vla_robot.policy.openvla.checkpoint import Checkpoint, torch_device, torch_dtype
from vla_robot.policy.openvla.engine.compiled import CompiledInference
from vla_robot.policy.openvla.engine.cpu_threads import threads_for
from vla_robot.policy.openvla.engine.quantise import memory_bytes, quantise, require_quantiser
from vla_robot.policy.openvla.inputs import embed, timer_of
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.reason import Decoder
from vla_robot.policy.openvla.prompt import PromptTokenizer, finish
from vla_robot.policy.openvla.weights import load_model, require_complete
from vla_robot.policy.vla.inputs.image_preprocessing import NONE
from vla_robot.policy.vla.inputs.observations import (
    Batch,
    ObservationReader,
    check_image_sensitivity,
    chunks_of,
    committed_tokens,
    require_observations,
)
from vla_robot.policy.vla.inputs.preprocess import Preprocessor
from vla_robot.policy.vla.inputs.statistics import Keys, Statistics, require_statistics
from vla_robot.policy.vla.reason.action_tokens import ActionTokenizer
from vla_robot.policy.vla.reason.generate import Generator, generate_text
from vla_robot.policy.vla.reason.stage_timer import StageTimer

LLAMA_SPACE = 29871
"""Llama's id of the space token, for checkpoints without a tokenizer."""


class OpenVLAPolicy:
    """A loaded checkpoint that acts.

    Attributes:
        embodiment: the arm the policy was trained for, or None for a published checkpoint, which does not say.
        statistics: dataset name -> statistics of actions (and of the state).
        preprocessor: turns frames into tower inputs.
        action_tokens: converts between normalised actions and token ids.
        read: makes the batch that `generate` takes from observations.
    """

    def __init__(
        self,
        model: OpenVLA,
        preprocessor: Preprocessor,
        tokenizer: PromptTokenizer | None,
        statistics: Mapping[str, Mapping[str, Any]],
        embodiment: Embodiment | None = None,
        statistics_key: str | None = None,
        compiled: bool = False,
    ) -> None:
        self.model = model
        self.embodiment = embodiment
        self.statistics = statistics
        self.preprocessor = preprocessor
        self._tokenizer = tokenizer
        self._statistics = Statistics(statistics, statistics_key)
        cameras = [camera.name for camera in embodiment.cameras] if embodiment else ()
        self.read = ObservationReader(model.config.inputs, preprocessor, tokenizer, self._statistics, cameras)
        config = model.config
        self.action_tokens = ActionTokenizer(config.action_vocab_end, config.n_action_bins)
        self._decoder = Decoder(model.language_model)
        self._generator = Generator(
            self._decoder,
            model.language_model.model.embed_tokens.weight.detach(),
            model.language_model.lm_head.weight.detach(),
            self.action_tokens.first_id,
            config.action_vocab_end,
            config.chunk,
        )
        self._compiled = CompiledInference(model, self._generator) if compiled else None

    def quantise(self, how: str) -> None:
        """Quantise the matrices to "int8" or "int4" in place; embeddings, norms and the action rows stay as they are.

        Raises:
            PolicyError: the quantisation is unknown, or the policy is compiled.
            MissingDependencyError: torchao or bitsandbytes is absent.
        """
        if self._compiled is not None:
            raise PolicyError("a compiled policy cannot be quantised: set compiled = false, or delete quantise.")
        quantise(self.model, self._decoder, how)

    def memory_bytes(self) -> int:
        """Return the bytes that the weights occupy."""
        return memory_bytes(self.model, self._decoder)

    def reset(self, seed: int) -> None:
        """Do nothing: greedy decoding of single observations has no memory and no randomness."""

    def act(self, observations: Sequence[Observation], statistics_keys: Keys | None = None) -> list[ActionChunk]:
        """Return one chunk of `config.chunk` actions per observation, computed in one batch.

        A policy of several actions must begin with those that the arm will execute anyway
        (`Observation.committed`), and generates the others given them.

        Args:
            observations: with any instructions.
            statistics_keys: per row, the dataset whose statistics un-normalise; None for the policy's own.

        Raises:
            ContractError: a camera, the state, the instruction, a key or a committed action does not fit.
            PolicyError: the model's output is not finite.
        """
        stages = timer_of(self.model)
        chunk = self.model.config.chunk
        require_observations(observations)
        stats = self._statistics.rows("action", len(observations), statistics_keys)
        batch = self.read(observations, statistics_keys)
        stages.lap("preprocess")
        # A row of fewer dimensions generates its own tokens first; later ones cannot change them.
        prefixes = [committed_tokens(o, s, chunk, self.action_tokens) for o, s in zip(observations, stats, strict=True)]
        tokens = self.generate(batch, chunk * max(map(len, stats)), stages, prefixes)
        rows = zip(self.action_tokens.decode(tokens), stats, strict=True)
        actions = [unnormalise(row[: chunk * len(s)].reshape(chunk, -1), s) for row, s in rows]  # each (K, D)
        stages.lap("detokenise")
        return chunks_of(actions, observations, stages, conditions=chunk > 1)

    @torch.inference_mode()
    def generate(
        self,
        batch: Batch,
        action_dim: int,
        stages: StageTimer | None = None,
        prefixes: Sequence[NDArray[np.int64]] | None = None,
    ) -> NDArray[np.int64]:
        """Return (B, action_dim) token ids of a batch from `read`; `stages` receives the time of each stage.

        With `prefixes`, each row begins with its own given ids, fewer than `action_dim`.
        """
        with threads_for(self.model, batch):
            if prefixes is not None and any(map(len, prefixes)):
                prompt = embed(self.model, batch, stages)
                forced = [torch.from_numpy(prefix).to(prompt.embeds.device) for prefix in prefixes]
                tokens = self._generator.continued(prompt, forced, action_dim, stages)
            elif self._compiled is not None and self._compiled.takes(batch):
                tokens = self._compiled(batch, action_dim, stages or StageTimer())
            else:
                tokens = self._generator.tokens(embed(self.model, batch, stages), action_dim, stages)
        return tokens.cpu().numpy()

    @torch.inference_mode()
    def answer(self, images: Mapping[str, Image], question: str, max_tokens: int = 32) -> str:
        """Answer a question about a scene in words; useful after training on questions ("Keep its language").

        Args:
            images: camera name -> (H, W, 3) uint8.
            question: in plain words, e.g. "which cube is left?".
            max_tokens: longest answer, in tokens.

        Raises:
            ContractError: a camera is missing, or the question is empty or too long.
            PolicyError: the model's output is not finite.
        """
        dim = self.model.config.proprio_dim
        state = None if dim is None else torch.zeros(1, dim)  # a question is about the scene, not the arm
        batch = Batch(self.preprocessor([self.read.images(images)]), [self.tokenizer.question(question)], state)
        with threads_for(self.model, batch):
            llama, words = self.model.language_model, self.model.config.num_words
            embeddings, head = llama.model.embed_tokens.weight[:words], llama.lm_head.weight[:words]
            prompt = embed(self.model, batch)
            said = generate_text(self._decoder, embeddings, head, prompt, self.tokenizer.eos, max_tokens)
        return self.tokenizer.words(said.cpu().numpy())

    def generate_tokens(
        self,
        images: Sequence[Image | Sequence[Image]],
        input_ids: Sequence[NDArray[np.int64]],
        state: NDArray[np.float64] | None = None,
        action_dim: int = 7,
    ) -> NDArray[np.int64]:
        """Run the bare model, for comparisons.

        Args:
            images: one (H, W, 3) uint8 array per row, or one per camera and row.
            input_ids: one 1-D array per row, BOS first; the final space token is added if it is missing.
            state: (B, proprio_dim) normalised, for policies that take it.
            action_dim: number of tokens.

        Returns:
            (B, action_dim) int64 token ids.
        """
        tensor = None if state is None else torch.from_numpy(np.asarray(state, dtype=np.float32))
        return self.generate(self._bare_batch(images, input_ids, tensor), action_dim)

    @torch.inference_mode()
    def first_logits(
        self, images: Sequence[Image | Sequence[Image]], input_ids: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.float32]:
        """Return (B, 256) logits of the first generated position over the action rows, for comparisons."""
        return self._first_logits(self._bare_batch(images, input_ids, None)).float().cpu().numpy()

    def action_stats(self, key: str | None = None) -> QuantileStats:
        """Return the quantiles that turn normalised actions into units, by default those that `act` uses.

        Raises:
            ContractError: the dataset is unknown, or not given although there are several.
        """
        return self._statistics.of("action", key)

    @property
    def tokenizer(self) -> PromptTokenizer:
        """The tokenizer. Raises CheckpointError if the folder has none."""
        return self.read.tokenizer

    def _bare_batch(
        self, images: Sequence[Image | Sequence[Image]], input_ids: Sequence[NDArray[np.int64]], state: Tensor | None
    ) -> Batch:
        rows = [[row] if isinstance(row, np.ndarray) else list(row) for row in images]
        return Batch(self.preprocessor(rows), [self._finish(ids) for ids in input_ids], state)

    def _finish(self, input_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return finish(input_ids, LLAMA_SPACE if self._tokenizer is None else self._tokenizer.space)

    def _first_logits(self, batch: Batch) -> Tensor:
        return self._generator.first_logits(embed(self.model, batch))

    def self_test(self) -> None:
        """Raise CheckpointError if the model ignores its image or its logits are not finite."""
        check_image_sensitivity(self.model.config.inputs, self.preprocessor, self._first_logits)


def load(
    folder: Path,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    statistics_key: str | None = None,
    image_preprocessing: str = NONE,
    compiled: bool = False,
    quantise: str | None = None,
    trainable: bool = False,
) -> OpenVLAPolicy:
    """Load a policy from a checkpoint folder in the published layout.

    Args:
        folder: config.json, safetensors, preprocessor_config.json, tokenizer.json, dataset_statistics.json.
        dtype: "float32", "bfloat16" or "float16", or torch's own object.
        device: torch device.
        statistics_key: dataset whose statistics un-normalise the actions; required if there are several.
        image_preprocessing: preprocessing of frames: "none", "rlds" or "rlds_crop".
        compiled: compile a graph for each shape of batch; the first inference of a shape then takes a minute.
        quantise: "int8" or "int4": quantise matrices while loading; the folder keeps plain weights.
        trainable: store matrices as optimisers need them, not as acting reads them fastest.

    Raises:
        CheckpointError: the folder is incomplete, damaged or fails the self-test.
        PolicyError: compiling is impossible here, or the quantisation is unknown.
        MissingDependencyError: quantising needs torchao (int8) or bitsandbytes (int4).
    """
    if quantise is not None:
        require_quantiser(quantise)  # before gigabytes are read
    checkpoint = Checkpoint.read(folder, image_preprocessing)
    acting = not trainable and quantise is None
    policy = OpenVLAPolicy(
        load_model(folder, checkpoint.config, torch_dtype(dtype), torch_device(device), acting=acting),
        checkpoint.preprocessor,
        checkpoint.tokenizer,
        checkpoint.config.norm_stats,
        checkpoint.embodiment,
        statistics_key,
        compiled,
    )
    if quantise is not None:
        policy.quantise(quantise)
    policy.self_test()
    return policy


def check(folder: Path, statistics_key: str | None = None, image_preprocessing: str = NONE) -> None:
    """Raise what `load` and the first `act` would raise, without reading weights.

    This does not find damaged tensors, a model that fails the self-test, or a missing
    `statistics_key` of a checkpoint with several datasets: clients of a server bring their own.

    Args:
        folder: checkpoint in the published layout.
        statistics_key: dataset whose statistics will un-normalise the actions, if one is named.
        image_preprocessing: "none", "rlds" or "rlds_crop".

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit config.json.
        ContractError: the statistics key or image_preprocessing is unknown.
    """
    checkpoint = Checkpoint.read(folder, image_preprocessing)
    if checkpoint.tokenizer is None:
        raise CheckpointError(f"{folder / 'tokenizer.json'} is missing; a policy needs it to read instructions.")
    require_statistics(Statistics(checkpoint.config.norm_stats, statistics_key))
    require_complete(folder, checkpoint.config)
