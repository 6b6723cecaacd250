"""Demonstrations as training batches: frames, state and text in, action tokens as labels.

One row of a batch:

    input_ids   [BOS] In: What action ...? Out: [space] | a0 a1 a2 a3 a4 a5 a6 [EOS]      then padding
    labels        -   -   -   -   -   -   -   -    -    | a0 a1 a2 a3 a4 a5 a6 [EOS]      (- is ignored)

A policy of several actions an answer says those of the next steps behind each other before the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.normalise import QuantileStats, normalise
from vla_robot.data.formats.lerobot.demo_dataset import Demos
from vla_robot.data.pipeline.shuffle import Mixing, shuffled
from vla_robot.data.pipeline.windows import Window, pad_actions
from vla_robot.policy.openvla.inputs.action_tokens import ActionTokenizer
from vla_robot.policy.openvla.inputs.prompt import PromptTokenizer
from vla_robot.policy.openvla.network.model import IGNORE
from vla_robot.policy.openvla.policy import OpenVLAPolicy
from vla_robot.train.batches.augment import random_shift

ORDER, SHIFT, HELD_OUT = 0, 1, 2
"""Separate random streams of one seed."""


@dataclass(frozen=True)
class Batch:
    """Inputs of `OpenVLA.forward`.

    Attributes:
        pixels: (B, N, C, S, S) float32.
        input_ids: (B, L) int64.
        labels: (B, L) int64.
        state: (B, P) float32 in [-1, 1], or None.
        actions: (B, K, D) float32, normalised, where a window of actions was asked for; or None.
    """

    pixels: Tensor
    input_ids: Tensor
    labels: Tensor
    state: Tensor | None
    actions: Tensor | None = None

    def split(self, rows: int) -> list[Batch]:
        """In parts of at most `rows` rows; itself for 0."""
        if rows == 0 or rows >= len(self.pixels):
            return [self]
        fields = {name: value for name, value in vars(self).items() if value is not None}
        parts = {name: value.split(rows) for name, value in fields.items()}
        return [replace(self, **dict(zip(parts, each, strict=True))) for each in zip(*parts.values(), strict=True)]

    def to(self, device: torch.device) -> Batch:
        """On a device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class FrameBank:
    """Every frame of the demonstrations, decoded once and kept as uint8: cameras * S * S * 3 bytes a frame.

    Attributes:
        frames: (F, N, S, S, 3) uint8.
        state: (F, P) float32 in [-1, 1], or None.
        input_ids: (F, L) int64, padded at the right.
        labels: (F, L) int64.
        policy: whose preprocessing and vocabulary made these.
    """

    frames: NDArray[np.uint8]
    state: NDArray[np.float32] | None
    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    policy: OpenVLAPolicy

    @classmethod
    def load(cls, demos: Demos, policy: OpenVLAPolicy, key: str, on_progress: Callable[[int, int], None]) -> FrameBank:
        """Decode, square, normalise and tokenise everything.

        Args:
            demos: what was recorded.
            policy: what will be trained.
            key: statistics that normalise actions and state.
            on_progress: frames done, frames in all.

        Raises:
            DataError: an action is not finite.
        """
        size = policy.model.config.image_size
        assert policy.embodiment is not None
        cameras = [camera.name for camera in policy.embodiment.cameras]
        frames = np.empty((demos.num_frames, len(cameras), size, size, 3), dtype=np.uint8)
        for index, name in enumerate(cameras):
            frames[:, index] = _squares(demos, name, policy, on_progress)
        state = None
        if policy.model.config.proprio_dim is not None:
            stats = QuantileStats.from_dict(policy.statistics[key]["proprio"])
            state = normalise(demos.states, stats).astype(np.float32)
        input_ids, labels = _text(demos, policy, policy.action_stats(key))
        return cls(frames, state, input_ids, labels, policy)

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, rows: NDArray[np.int64], shift_px: int = 0, generator: torch.Generator | None = None) -> Batch:
        """The frames of these rows; with `shift_px`, each image is moved by up to so many pixels."""
        squares = torch.from_numpy(self.frames[rows])  # (B, N, S, S, 3)
        if shift_px:
            squares = random_shift(squares, shift_px, generator)
        return Batch(
            pixels=self.policy.preprocessor.normalise(squares),
            input_ids=torch.from_numpy(self.input_ids[rows]),
            labels=torch.from_numpy(self.labels[rows]),
            state=None if self.state is None else torch.from_numpy(self.state[rows]),
        )


def _squares(
    demos: Demos, camera: str, policy: OpenVLAPolicy, on_progress: Callable[[int, int], None]
) -> NDArray[np.uint8]:
    """(F, S, S, 3) frames of a camera as the policy squares them.

    With "resize-naive", the strategy of every released OpenVLA, the threaded reader resizes by itself.
    """
    size = policy.model.config.image_size
    if policy.preprocessor.strategy == "resize-naive":
        return demos.frames(camera, size, size, on_progress)
    return np.stack([policy.preprocessor.square(frame) for frame in demos.frames(camera, on_progress=on_progress)])


def _text(demos: Demos, policy: OpenVLAPolicy, stats: QuantileStats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and labels of every frame, both (F, L)."""
    prompts = [policy.tokenizer(text) for text in demos.texts]
    pad_id = policy.model.config.pad_token_id
    windows = _windows(demos, normalise(demos.actions, stats), stats, policy.model.config.chunk)
    answers = answers_of(windows, policy.action_tokens, policy.tokenizer)
    return labelled([prompts[index] for index in demos.text_of], answers, pad_id)


def _windows(demos: Demos, actions: NDArray[np.float64], stats: QuantileStats, chunk: int) -> NDArray[np.floating]:
    """(F, D) normalised actions of all frames -> (F, K, D) from each frame on, as `record.windows` has them."""
    is_absolute = np.full(len(stats), demos.embodiment.action.kind == "joint_position") | ~stats.mask
    window, rows = Window(future=chunk - 1), list[NDArray[np.floating]]()
    for episode in demos.episodes:
        own = actions[episode.start : episode.stop]
        for step in range(len(own)):
            steps, after_end = window.actions(step, len(own))
            rows.append(pad_actions(own[steps], after_end, is_absolute))
    return np.stack(rows)


def answers_of(
    actions: NDArray[np.floating], action_tokens: ActionTokenizer, tokenizer: PromptTokenizer
) -> NDArray[np.int64]:
    """(B, K, D) normalised actions -> (B, K * D + 1) what the policy should say: the actions' tokens and the end."""
    tokens = action_tokens.encode(actions).reshape(len(actions), -1)
    return np.concatenate([tokens, np.full((len(tokens), 1), tokenizer.eos)], axis=1)


def labelled(
    prompts: Sequence[NDArray[np.int64]], answers: Iterable[NDArray[np.int64]], pad_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Prompts and as many answers, all of any lengths -> token ids and labels, both (B, L), padded at the right."""
    rows = list(zip(prompts, answers, strict=True))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids = np.full((len(prompts), longest), pad_id, dtype=np.int64)
    labels = np.full((len(prompts), longest), IGNORE, dtype=np.int64)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        input_ids[row, : len(prompt)] = prompt
        input_ids[row, len(prompt) : end] = labels[row, len(prompt) : end] = answer
    return input_ids, labels


@dataclass(frozen=True)
class Split:
    """Which frames train and which only measure; whole episodes, so that no frame's neighbour is on the other side.

    Attributes:
        train: (F1,) frame indices.
        held_out: (F2,) frame indices.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]

    @classmethod
    def make(cls, demos: Demos, share: float, seed: int, future: int = 0) -> Split:
        """Hold out `share` of the episodes, at least one unless the share is 0.

        Frames of which some of the `future` actions are lost, in an episode that ends at a gap, are in neither.
        """
        count = len(demos.episodes)
        chosen = min(max(round(share * count), 1 if share > 0 else 0), count - 1)
        held = np.random.default_rng([seed, HELD_OUT]).permutation(count)[:chosen]
        is_held, is_known = np.isin(demos.episode_index, held), _is_known(demos, future)
        return cls(np.flatnonzero(~is_held & is_known), np.flatnonzero(is_held & is_known))


def _is_known(demos: Demos, future: int) -> NDArray[np.bool_]:
    """(F,) all actions that a frame's window asks for were recorded, or lie behind the true end of the episode."""
    lengths = np.array([len(episode) for episode in demos.episodes], dtype=np.int64)
    goes_on = np.array([episode.goes_on for episode in demos.episodes], dtype=np.bool_)
    place = np.arange(demos.num_frames) - np.repeat([episode.start for episode in demos.episodes], lengths)
    return place < np.repeat(Window(future=future).steps_in(lengths, goes_on), lengths)


def rows_of_step(train: NDArray[np.int64], step: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """(B,) frames of one training step: every epoch is a new shuffle, and a step knows its frames by its number alone.

    That is what lets a run resume exactly: there is no shuffle buffer whose content could be lost.
    """
    size = min(batch_size, len(train))
    epoch, position = divmod(step, len(train) // size)
    order = np.random.default_rng([seed, ORDER, epoch]).permutation(len(train))
    return train[order[position * size : (position + 1) * size]]


class WeightedOrder:
    """`rows_of_step` for datasets that are not drawn alike: shares by weight, and epochs of their own."""

    def __init__(self, parts: Sequence[NDArray[np.int64]], weights: Sequence[float], seed: int) -> None:
        """
        Args:
            parts: frame indices of each dataset, at least one.
            weights: how often a frame of each is drawn, relative to a frame of the others.
            seed: of the order.
        """
        self._parts = tuple(parts)
        self._seed = seed
        self._mixing = Mixing([w * len(part) for w, part in zip(weights, parts, strict=True)], seed)

    def rows(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """(B,) frames of one training step, a function of its number alone."""
        return np.array([self._row(number) for number in range(step * batch_size, (step + 1) * batch_size)])

    def _row(self, number: int) -> int:
        which, draw = self._mixing.draw(number)
        part = self._parts[which]
        epoch, place = divmod(draw, len(part))
        return int(part[shuffled(place, len(part), (self._seed, ORDER, which, epoch))])


def shift_generator(seed: int, step: int) -> torch.Generator:
    """Randomness of one step's augmentation, a function of seed and step."""
    mixed = np.random.SeedSequence([seed, SHIFT, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
