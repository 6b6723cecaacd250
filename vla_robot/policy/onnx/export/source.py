"""A policy in torch as the export sees it, whatever its head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import Observation
from vla_robot.core.normalise import QuantileStats
from vla_robot.policy.onnx.export.steps import Step
from vla_robot.policy.onnx.record import Answer, Record
from vla_robot.policy.vla.inputs.observations import Batch, ObservationReader
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor
from vla_robot.policy.vla.inputs.prompts import Prompts
from vla_robot.policy.vla.model import VLAModel


class Source(ABC):
    """What is exported of a policy.

    Attributes:
        model: the model.
        read: makes batches from observations.
        preprocessor: turns frames into the model's pixels.
        statistics: dataset name -> its block of dataset_statistics.json.
        embodiment: the arm of the training, or None.
        cameras: names in the order of the model's images; empty takes all of an observation, sorted by name.
    """

    model: VLAModel[Any]
    read: ObservationReader[Any]
    preprocessor: FramePreprocessor
    statistics: Mapping[str, Mapping[str, Any]]
    embodiment: Embodiment | None
    cameras: Sequence[str]

    @property
    def prompts(self) -> Prompts:
        """Turns instructions into ids."""
        return self.read.tokenizer

    @abstractmethod
    def state_stats(self) -> QuantileStats:
        """Return the statistics of the arm's state."""

    @abstractmethod
    def answer(self, batch: Batch) -> Answer:
        """Return the form and sizes of answers, with the help of a batch of one observation."""

    @abstractmethod
    def steps(self, record: Record) -> Iterator[tuple[str, Step]]:
        """Yield each graph's file and its step."""

    @abstractmethod
    def answers(self, seen: Sequence[Observation], answer: Answer) -> NDArray[Any]:
        """Return torch's answers to observations, each alone, in the form of `OnnxPolicy.answers`."""

    @abstractmethod
    def first(self, seen: Sequence[Observation]) -> NDArray[Any]:
        """Return what torch gives first, each alone, in the form of `GraphGenerator.first`, or of `GraphRegression`."""

    @torch.no_grad()
    def flops(self, batch: Batch) -> float:
        """Return about how many operations a batch takes: every weight once for each token of its rows."""
        weights = sum(p.numel() for layer in self.model.layers() for p in layer.parameters())
        return 2.0 * weights * self.model.prompt(batch).embeds.shape[1]
