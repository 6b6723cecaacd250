"""A vision-language-action model as a Policy: turns observations into action chunks in physical units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import ActionChunk, Image, Observation
from vla_robot.core.normalise import QuantileStats, unnormalise
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.device import choose_attention
from vla_robot.policy.vla.codecs.rows import decoded
from vla_robot.policy.vla.engine.compiled import CompiledInference
from vla_robot.policy.vla.engine.quantise import memory_bytes
from vla_robot.policy.vla.inputs.observations import Batch, ObservationReader, check_image_sensitivity
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor
from vla_robot.policy.vla.inputs.prompts import Prompts
from vla_robot.policy.vla.inputs.reader import (
    chunks_of,
    committed_tokens,
    follows_committed,
    mean_entropy,
    require_observations,
)
from vla_robot.policy.vla.inputs.statistics import Keys, Statistics
from vla_robot.policy.vla.inputs.upload import pixels_on
from vla_robot.policy.vla.model import VLAModel, over_words
from vla_robot.policy.vla.reason.answer import Answer
from vla_robot.policy.vla.reason.cpu_threads import threads_for
from vla_robot.policy.vla.reason.generate import Generator, capped, generate_text
from vla_robot.policy.vla.reason.reasoner import Reasoner
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vla.slots.inference import BlockInference


class VLAPolicy[M: VLAModel[Any], T: Prompts, F: FramePreprocessor]:
    """A loaded checkpoint that acts.

    Attributes:
        model: the model, in evaluation mode.
        embodiment: the arm the policy was trained for, or None for a published checkpoint, which does not say.
        statistics: dataset name -> statistics of actions (and of the state).
        preprocessor: turns frames into the model's pixels.
        codec: converts between normalised actions and token ids.
        read: makes the batch that `generate` takes from observations.
        in_blocks: whether batches are rounded up to a few fixed sizes, which CUDA records and repeats. On other devices
            this gives the same tokens and gains nothing. Blocks have no grammar, so that a codec with one does without.
    """

    def __init__(
        self,
        model: M,
        preprocessor: F,
        tokenizer: T | None,
        statistics: Mapping[str, Mapping[str, Any]],
        embodiment: Embodiment | None = None,
        statistics_key: str | None = None,
        compiled: bool = False,
    ) -> None:
        self.model = model
        self.embodiment = embodiment
        self.statistics = statistics
        self.preprocessor = preprocessor
        self._statistics = Statistics(statistics, statistics_key)
        cameras = [camera.name for camera in embodiment.cameras] if embodiment else ()
        config = model.config
        choose_attention(model.weight.device)
        self._pixels = pixels_on(model.weight.device, preprocessor)
        self.read = ObservationReader(config.inputs, self._pixels, tokenizer, self._statistics, cameras)
        self.codec: ActionCodec = config.codec
        self._reasoner = model.reasoner()
        self._generator = self._generator_of(model)
        self._forget_blocks()
        self._compiled = CompiledInference(model, self._generator) if compiled else None
        self.in_blocks = model.weight.device.type == "cuda" and self.codec.grammar is None and not compiled
        self._weights = sum(p.numel() for layer in model.layers() for p in layer.parameters())

    @property
    def generator(self) -> Generator:
        """Decodes the action tokens."""
        return self._generator

    @property
    def reasoner(self) -> Reasoner[Any]:
        """The language model as acting reads it."""
        return self._reasoner

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

    @property
    def is_compiled(self) -> bool:
        """Whether batches run as compiled graphs."""
        return self._compiled is not None

    def memory_bytes(self) -> int:
        """Return the bytes that the weights occupy."""
        return memory_bytes((*self.model.parameters(), *self.model.buffers()))

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
        stages = self.model.timer()
        require_observations(observations)
        stats = self._statistics.rows("action", len(observations), statistics_keys)
        batch = self.read(observations, statistics_keys)
        stages.lap("preprocess")
        # A row of fewer dimensions generates its own tokens first; later ones cannot change them.
        prefixes = [committed_tokens(o, s, self.codec) for o, s in zip(observations, stats, strict=True)]
        lengths = [self.codec.tokens(len(s)) for s in stats]
        tokens, entropy = self.answer_batch(batch, max(lengths), stages, prefixes).numpy()
        actions = [unnormalise(decoded(self.codec, row, len(s)), s) for row, s in zip(tokens, stats, strict=True)]
        stages.lap("detokenise")
        after = [follows_committed(o, self.codec, prefix) for o, prefix in zip(observations, prefixes, strict=True)]
        unsure = [mean_entropy(row[:length]) for row, length in zip(entropy, lengths, strict=True)]
        return chunks_of(actions, observations, stages, after, unsure)

    def generate(
        self,
        batch: Batch,
        count: int,
        stages: StageTimer | None = None,
        prefixes: Sequence[NDArray[np.int64]] = (),
    ) -> NDArray[np.int64]:
        """Return the (B, up to count) token ids of `answer_batch`, in main memory."""
        return self.answer_batch(batch, count, stages, prefixes).numpy()[0]

    @torch.inference_mode()
    def answer_batch(
        self,
        batch: Batch,
        count: int,
        stages: StageTimer | None = None,
        prefixes: Sequence[NDArray[np.int64]] = (),
    ) -> Answer:
        """Return the answers to a batch from `read`; `stages` receives the time of each stage.

        With `prefixes`, each row begins with its own given ids, fewer than `count`.
        """
        stages = stages or StageTimer()
        begun = prefixes if any(map(len, prefixes)) else ()
        with threads_for(self.flops(batch), self.device):
            if self.in_blocks:
                return self._blocks(batch, count, stages, begun)
            if not begun and self._compiled is not None and self._compiled.takes(batch):
                return self._compiled(batch, count, stages)
            prompt = self.model.prompt(batch, stages)
            given = [torch.from_numpy(prefix).to(prompt.embeds.device) for prefix in begun]
            return self._generator.answer(prompt, count, stages, given)

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
        dim = self.model.config.inputs.proprio_dim
        state = None if dim is None else torch.zeros(1, dim)  # a question is about the scene, not the arm
        batch = Batch(self._pixels([self.read.images(images)]), [self.tokenizer.question(question)], state)
        with threads_for(self.flops(batch), self.device):
            prompt, words = self.model.prompt(batch), self.tokenizer
            said = generate_text(self._reasoner, self.model.look_up, self._word_logits, prompt, words.eos, max_tokens)
        return words.words(said.cpu().numpy())

    def action_stats(self, key: str | None = None) -> QuantileStats:
        """Return the quantiles that turn normalised actions into units, by default those that `act` uses.

        Raises:
            ContractError: the dataset is unknown, or not given although there are several.
        """
        return self._statistics.of("action", key)

    def state_stats(self, key: str | None = None) -> QuantileStats:
        """Return the quantiles of the arm's state, by default those that `act` uses. Raises as `action_stats`."""
        return self._statistics.of("proprio", key)

    @property
    def tokenizer(self) -> T:
        """The tokenizer. Raises CheckpointError if the folder has none."""
        return self.read.tokenizer

    def self_test(self) -> None:
        """Raise CheckpointError if the model ignores its image or its logits are not finite."""
        config = self.model.config
        check_image_sensitivity(config.inputs, config.frame, self.preprocessor, self._pixels, self._first_logits)

    def _first_logits(self, batch: Batch) -> Tensor:
        return self._generator.first_logits(self.model.prompt(batch))

    def _word_logits(self, hidden: Tensor) -> Tensor:
        head = self.model.head[: self.model.config.num_words]
        return over_words(capped(linear(hidden, head), self.model.soft_cap), self.model.config)

    def flops(self, batch: Batch) -> float:
        """Return about how many operations a batch takes: every weight once for each token of its rows."""
        return 2.0 * self._weights * (sum(map(len, batch.prompts)) + len(batch.prompts) * self.model.image_tokens)

    def _forget_blocks(self) -> None:
        """Begin anew without blocks, whose recorded steps read the weights as they were."""
        self._blocks = BlockInference(self.model, self._reasoner, self._generator)

    def _generator_of(self, model: M) -> Generator:
        ids = torch.from_numpy(self.codec.ids.copy()).to(model.head.device)
        with torch.no_grad():
            embeddings = model.look_up(ids)
        return Generator(self._reasoner, embeddings, _rows_of(model.head, self.codec.ids), self.codec, model.soft_cap)


def _rows_of(head: Tensor, ids: NDArray[np.int64]) -> Tensor:
    """Return (A, D) rows of a (V, D) head: a view where they lie together, since a copy costs memory."""
    first, last = int(ids[0]), int(ids[-1])
    if np.array_equal(ids, np.arange(first, last + 1)):
        return head[first : last + 1]
    return head[torch.from_numpy(ids.copy()).to(head.device)]


type AnyVLAPolicy = VLAPolicy[Any, Any, Any]
"""A policy of any family."""
