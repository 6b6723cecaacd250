"""A vision-language-action model as one torch module, for training and for acting.

    pixels --perceive--> features --+
    state, token ids ---------------+--align--> embeddings --arrange--> rows --hidden--> states --logits--> next tokens

A family implements the steps. Training and its metrics, and the checks of a batch, are the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vla_robot.core.ports import ActionCodec, ActionHead
from vla_robot.policy.vla.codecs.scores import scores_of
from vla_robot.policy.vla.heads.build import AnyHead
from vla_robot.policy.vla.heads.prompted import KeysValues, Prompted
from vla_robot.policy.vla.heads.sizes import HeadSizes
from vla_robot.policy.vla.inputs.observations import Batch, pad_right, require_fit
from vla_robot.policy.vla.inputs.reader import InputSizes
from vla_robot.policy.vla.inputs.upload import numbers, upload
from vla_robot.policy.vla.reason.device_timer import timer_on
from vla_robot.policy.vla.reason.generate import capped
from vla_robot.policy.vla.reason.reasoner import Reasoner
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vla.sequence.ragged import RaggedSequence

IGNORE = -100
"""Label of a position that has no loss."""


class VLAConfig(Protocol):
    """What training and acting need to know of a model.

    Attributes:
        inputs: sizes of what the model reads.
        frame: height and width of a usual frame after resizing [px]: of the arm's cameras, where these are known.
        chunk: K, consecutive actions of one answer, token by token.
        pad_token_id: id that pads text at the right.
        codec: how actions are said.
        num_words: one past the last id of which a text consists; action ids among them are never words.
        norm_stats: dataset name -> statistics, as in dataset_statistics.json.
        head: gives actions as numbers, so that the codec's rows are not said; None for a policy of tokens.
    """

    @property
    def inputs(self) -> InputSizes: ...
    @property
    def frame(self) -> tuple[int, int]: ...
    @property
    def chunk(self) -> int: ...
    @property
    def pad_token_id(self) -> int: ...
    @property
    def codec(self) -> ActionCodec: ...
    @property
    def num_words(self) -> int: ...
    @property
    def norm_stats(self) -> Mapping[str, Any]: ...
    @property
    def head(self) -> HeadSizes | None: ...


@dataclass(frozen=True)
class TrainingOutput:
    """Loss and metrics of one training batch.

    Attributes:
        loss: () mean cross-entropy over all labelled positions, or the loss of an action head.
        token_accuracy: () share of action tokens predicted exactly; None for a head, which says none.
        l1: () mean absolute difference of the numbers that tokens say, in normalised units; None if a token says none.
            Of a head's answers, but not in training, where an answer would take more passes.
    """

    loss: Tensor
    token_accuracy: Tensor | None
    l1: Tensor | None


@dataclass(frozen=True)
class Labelled:
    """Positions of a batch's text that have a label, found in main memory, so that no device is waited for.

    Attributes:
        rows: (K,) int64 rows of the batch, on the model's device.
        columns: (K,) int64 columns of the text, on the model's device.
        ids: (K,) int64 labels, on the model's device.
        actions: (A,) int64 which of the K are action ids, on the model's device.
        first: (B,) int64 column of each row's first label, in main memory; 1 for a row without any.
    """

    rows: Tensor
    columns: Tensor
    ids: Tensor
    actions: Tensor
    first: Tensor

    @classmethod
    def of(cls, labels: Tensor, config: VLAConfig, device: torch.device) -> Labelled:
        """Find the labels of (B, L) int64 in main memory, which are IGNORE elsewhere. The first column has none."""
        there = numbers(labels)
        has_label = there[:, 1:] != IGNORE
        rows, columns = np.nonzero(has_label)
        ids = there[rows, columns + 1]
        actions = np.flatnonzero(np.isin(ids, config.codec.ids))
        packed = upload(torch.from_numpy(np.concatenate([rows, columns + 1, ids, actions])), device)  # one copy for all
        K, first = len(rows), torch.from_numpy(has_label.argmax(axis=1) + 1)
        return cls(packed[:K], packed[K : 2 * K], packed[2 * K : 3 * K], packed[3 * K :], first)


class VLAModel[C: VLAConfig](nn.Module, ABC):
    """Maps pixels, a prompt and the arm's state to logits.

    Attributes:
        config: sizes and statistics.
        PARTS: trainable part ("vision", "projector", "decoder") -> prefixes of its parameters' names.
        HEAD: name of the linear layer that gives the logits.
        locations: ids of <loc0000> to <loc1023> in order, over which the labels of boxes are spread in training; None
            without such tokens.
        soft_cap: turns a logit x into soft_cap * tanh(x / soft_cap); None leaves it.
        perceives_by_shape: whether `perceive` reads shapes alone, so that a GPU can record it.
        reasons_by_shape: the same of all that comes after it.
        first_position: position of a row's first token.
        prompt_sees_answer: whether the prompt attends to the answer of a head that is read in one pass.
        action_head: gives actions as numbers; None for a policy of tokens.
    """

    PARTS: ClassVar[Mapping[str, tuple[str, ...]]]
    HEAD: ClassVar[str]
    locations: range | None = None
    soft_cap: float | None = None
    perceives_by_shape: ClassVar[bool] = True
    reasons_by_shape: ClassVar[bool] = True
    first_position: ClassVar[int] = 0
    prompt_sees_answer: ClassVar[bool] = False
    config: C
    action_head: AnyHead | None

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """A weight on the model's device and in its precision."""

    @abstractmethod
    def pixel_shape(self) -> tuple[int, ...]:
        """Return the shape of one row's pixels: cameras, channels, height and width."""

    @property
    @abstractmethod
    def image_tokens(self) -> int:
        """Tokens that a row's images take in the sequence."""

    @abstractmethod
    def perceive(self, pixels: Tensor) -> Tensor:
        """Map (B, N, C, H, W) normalised frames to (B, N * P, Dv) features."""

    @abstractmethod
    def align(self, features: Tensor, input_ids: Tensor, state: Tensor | None) -> Tensor:
        """Return the sequence of a row's image tokens, its state and its text.

        Args:
            features: (B, N * P, Dv) from `perceive`.
            input_ids: (B, L) int64 text, padded at the right.
            state: (B, proprio_dim) in [-1, 1], or None for a policy without proprioception.

        Returns:
            (B, S, D) embeddings. All of the text but its first tokens is at the end, so that S - L tokens are inserted.
        """

    def arrange(self, pixels: Tensor, embeds: Tensor, prompts: Tensor) -> RaggedSequence:
        """Return rows with their blocks and positions; by default all tokens are causal and are counted from 0.

        Args:
            pixels: (B, N, C, H, W), of which only the shape is used.
            embeds: (B, S, D) from `align`.
            prompts: (B,) int64 tokens of each row's prompt, what is inserted included.
        """
        return RaggedSequence(embeds, prompts)

    @abstractmethod
    def hidden(self, rows: RaggedSequence) -> Tensor:
        """Return (B, S, D) normed hidden states of whole rows, for training."""

    @abstractmethod
    def memory(self, rows: RaggedSequence) -> KeysValues:
        """Return keys and values of whole rows, for training and for acting."""

    @abstractmethod
    def reasoner(self) -> Reasoner[Any]:
        """Return the language model as acting reads it."""

    @abstractmethod
    def look_up(self, ids: Tensor) -> Tensor:
        """Return (..., D) embeddings of (...) int64 ids, as they stand in a sequence."""

    @property
    @abstractmethod
    def head(self) -> Tensor:
        """(V, D) rows that give the logits."""

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """Return the blocks of the towers, then the layers of the decoder, in the order of the forward pass."""

    def embed(self, pixels: Tensor, input_ids: Tensor, state: Tensor | None) -> Tensor:
        """Perceive and align: return (B, S, D)."""
        return self.align(self.perceive(pixels), input_ids, state)

    def timer(self) -> StageTimer:
        """Return a timer, started, for an inference on the model's device."""
        return timer_on(self.weight.device)

    def prompt(self, batch: Batch, stages: StageTimer | None = None) -> RaggedSequence:
        """Perceive and align a batch of prompts. Raises ContractError if it does not fit the model."""
        stages = stages or StageTimer()
        pixels, ids, state, text_lengths = self.tensors(batch)
        features = self.perceive(pixels)
        stages.lap("towers")
        embeds = self.align(features, ids, state)
        stages.lap("projector")
        return self.arrange(pixels, embeds, text_lengths + embeds.shape[1] - ids.shape[1])

    def tensors(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return a batch's tensors on the model's device and in its precision.

        Returns:
            (B, N, C, H, W) pixels, (B, L) ids padded at the right, (B, P) state or None, (B,) real ids per row; the
            last in main memory, where reading it waits for no device.

        Raises:
            ContractError: the batch does not fit the model.
        """
        require_fit(batch, self.config.inputs)
        ids, lengths = pad_right(batch.prompts, self.config.pad_token_id)
        device, dtype = self.weight.device, self.weight.dtype
        state = None if batch.state is None else upload(batch.state, device).to(dtype)
        return upload(batch.pixels, device).to(dtype), upload(ids, device), state, lengths

    def prompted(self, rows: RaggedSequence) -> Prompted:
        """Return rows that end in the end token as an action head gets them."""
        return Prompted(rows, self.hidden, self.memory, self.first_position, self.prompt_sees_answer)

    def forward(
        self,
        pixels: Tensor,
        input_ids: Tensor,
        labels: Tensor,
        state: Tensor | None,
        smoothing: float = 0.0,
        actions: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> TrainingOutput:
        """Return the training loss and metrics of a right-padded batch.

        Answers in tokens are causal, so padding at the right is hidden from every labelled position.

        Args:
            pixels: (B, N, C, H, W).
            input_ids: (B, L) int64.
            labels: (B, L) int64, IGNORE where there is no loss; in main memory, where looking at them waits for no
                device.
            state: (B, proprio_dim) or None.
            smoothing: standard deviation, in bins, of a Gaussian that spreads each label of an action or a place over
                its neighbours; 0 is the reference. Neighbouring bins are almost right, which plain cross-entropy
                ignores.
            actions: (B, K, D) in [-1, 1] that an action head learns, and each row's only label is its end token; None
                for answers in tokens.
            seeds: (B,) int64 in main memory, from which the head draws each row's random numbers.

        Raises:
            ContractError: the actions have another shape than the head's.
        """
        labelled = Labelled.of(labels, self.config, input_ids.device)
        if self.action_head is not None and actions is not None and seeds is not None:
            return self._regress(self.action_head, pixels, input_ids, labelled, state, actions, numbers(seeds))
        return self._score(self._predict(pixels, input_ids, labelled, state), labelled, smoothing)

    def answers_match(self, pixels: Tensor, input_ids: Tensor, labels: Tensor, state: Tensor | None) -> Tensor:
        """Return (B,) bool: whether greedy decoding over the words would give exactly a row's labels.

        One pass is enough: as long as each token is the label, the next one depends on the labels before it.

        Args:
            pixels: as in `forward`.
            input_ids: as in `forward`.
            labels: as in `forward`; words and the end token.
            state: as in `forward`.
        """
        labelled = Labelled.of(labels, self.config, input_ids.device)
        logits = self._predict(pixels, input_ids, labelled, state)
        wrong = over_words(logits, self.config).argmax(dim=1) != labelled.ids
        return input_ids.new_zeros(len(input_ids)).index_add(0, labelled.rows, wrong.long()) == 0

    def _regress(
        self,
        head: ActionHead[Prompted, Tensor],
        pixels: Tensor,
        input_ids: Tensor,
        labelled: Labelled,
        state: Tensor | None,
        actions: Tensor,
        seeds: NDArray[np.int64],
    ) -> TrainingOutput:
        embeds = self.embed(pixels, input_ids, state)
        through_end = labelled.first + 1 + embeds.shape[1] - input_ids.shape[1]
        prompts = self.prompted(self.arrange(pixels, embeds, through_end))
        loss = head.loss(prompts, actions, seeds)
        if torch.is_grad_enabled():
            return TrainingOutput(loss, None, None)
        return TrainingOutput(loss, None, (head.answer(prompts, seeds) - actions).abs().mean())

    def _predict(self, pixels: Tensor, input_ids: Tensor, labelled: Labelled, state: Tensor | None) -> Tensor:
        """Return, for all K labelled positions, (K, V) logits."""
        embeds = self.embed(pixels, input_ids, state)
        inserted = embeds.shape[1] - input_ids.shape[1]
        hidden = self.hidden(self.arrange(pixels, embeds, labelled.first + inserted))
        # A label of the text is predicted one position earlier, after the inserted tokens.
        read = hidden[labelled.rows, labelled.columns - 1 + inserted]
        return capped(self.get_submodule(self.HEAD)(read), self.soft_cap).float()

    def _score(self, logits: Tensor, labelled: Labelled, smoothing: float) -> TrainingOutput:
        scores = scores_of(self.config.codec, logits.shape[1], logits.device, self.locations)
        if smoothing > 0 and (self.config.codec.scale or self.locations):
            loss = cross_entropy(logits, scores.smooth(labelled.ids, smoothing))
        else:
            loss = cross_entropy(logits, labelled.ids)
        with torch.no_grad():
            predicted, wanted = logits[labelled.actions].argmax(dim=1), labelled.ids[labelled.actions]
            accuracy = (predicted == wanted).float().mean()
            l1 = scores.distance(predicted, wanted)
        return TrainingOutput(loss, accuracy, l1)


def over_words(logits: Tensor, config: VLAConfig) -> Tensor:
    """Return (..., num_words) logits of (..., V), those of ids that only actions use minus infinity."""
    words = logits[..., : config.num_words]
    if not config.codec.reserved:
        return words
    actions = scores_of(config.codec, config.inputs.vocabulary, logits.device).is_action[: config.num_words]
    return words.masked_fill(actions, -torch.inf)


type AnyVLAModel = VLAModel[Any]
"""A model of any family."""
