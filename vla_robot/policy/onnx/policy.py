"""An exported folder as a Policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.embodiment import Embodiment, require_fit
from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.normalise import unnormalise
from vla_robot.policy.onnx.frames import from_data
from vla_robot.policy.onnx.heads import head_of
from vla_robot.policy.onnx.inputs import Inputs
from vla_robot.policy.onnx.prompts import ExportedPrompts
from vla_robot.policy.onnx.record import RECORD, WEIGHTS, file_names, read_record
from vla_robot.policy.onnx.runtime import Graphs
from vla_robot.policy.vla.inputs.reader import InputReader, chunks_of, mean_entropy, require_observations
from vla_robot.policy.vla.inputs.statistics import Keys, Statistics, require_statistics
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vla.small_files import STATISTICS, read_embodiment, read_statistics
from vla_robot.recipe.policy import OnnxRecipe


class OnnxPolicy:
    """An exported policy that acts.

    Attributes:
        record: content of its onnx.json.
        embodiment: the arm the policy was trained for, or None if the exported folder did not say.
        head: how its answers are actions.
        generate: maps `Inputs` to answers, (B, N) token ids or (B, K, D) normalised actions, and to entropies, or None.
    """

    def __init__(
        self, folder: Path, provider: str = "cpu", threads: int | None = None, statistics_key: str | None = None
    ) -> None:
        """
        Args:
            folder: written by `vla export onnx`.
            provider: key of `runtime.PROVIDERS`.
            threads: processor threads of an inference, 0 for the runtime's choice; None for the folder's.
            statistics_key: dataset whose statistics un-normalise the actions; None for the folder's.

        Raises:
            CheckpointError: the folder is incomplete, damaged, or of another version.
            ContractError: the provider or the statistics are not there.
        """
        small = _SmallFiles(folder, statistics_key)
        self.record, self.embodiment, self.head = small.record, small.embodiment, small.head
        self._statistics, self._preprocessor, self._read = small.statistics, small.preprocessor, small.reader
        graphs = Graphs(folder, small.record, provider, small.record.threads if threads is None else threads)
        self.generate = self.head.engine(graphs, small.record)
        self.generate.open()

    def reset(self, seed: int) -> None:
        """Do nothing: an answer to a single observation has no memory and no randomness."""

    def act(self, observations: Sequence[Observation], statistics_keys: Keys | None = None) -> list[ActionChunk]:
        """Return one chunk of K actions per observation; a large batch is answered in several.

        Args:
            observations: with any instructions.
            statistics_keys: per row, the dataset whose statistics un-normalise; None for the policy's own.

        Raises:
            ContractError: a camera, a frame, the state, the instruction, a key or a committed action does not fit.
            PolicyError: the graphs' output is not finite, or the runtime fails.
        """
        stages, head = StageTimer(), self.head
        require_observations(observations)
        stats = self._statistics.rows("action", len(observations), statistics_keys)
        head.require_dims(stats)
        inputs = self.inputs(observations, statistics_keys)
        stages.lap("preprocess")
        answers, entropy = self.generate(inputs, stages)
        rows = zip(answers, stats, strict=True)
        actions = [unnormalise(head.normalised(row, len(s)), s, head.epsilon) for row, s in rows]  # each (K, D)
        stages.lap("detokenise")
        after = [head.follows(o, given) for o, given in zip(observations, inputs.given, strict=True)]
        unsure = None if entropy is None else [mean_entropy(row) for row in entropy]
        return chunks_of(actions, observations, stages, after, unsure)

    def inputs(self, observations: Sequence[Observation], keys: Keys | None = None) -> Inputs:
        """Return what the graphs read of observations. Raises ContractError as `act`."""
        pixels = self._preprocessor([self._read.images(o.images) for o in observations])
        if pixels.shape[1:] != self.record.frames:
            height, width = next(iter(observations[0].images.values())).shape[:2]
            raise ContractError(
                f"frames of {height}x{width} px become pixels of shape {pixels.shape[1:]}, but the graphs of this "
                f"folder read {self.record.frames}. Export the policy again for frames of this shape: "
                f"vla export onnx {self.record.policy} FOLDER --frame {height} {width}."
            )
        stats = self._statistics.rows("action", len(observations), keys)
        given = [self.head.given(o, s) for o, s in zip(observations, stats, strict=True)]
        return Inputs(pixels, self._read.prompts(observations), self._read.state(observations, keys), given)

    def answers(self, observations: Sequence[Observation]) -> NDArray[Any]:
        """Return answers to observations: (B, N) token ids, or (B, K, D) normalised actions. Raises as `act`."""
        return self.generate(self.inputs(observations), StageTimer())[0]

    def normalised(self, answers: NDArray[Any]) -> NDArray[np.float64]:
        """Return the (B, K, D) actions in [-1, 1] of answers."""
        return np.stack([self.head.normalised(row, self.record.answer.action_dim) for row in answers])


class _SmallFiles:
    """Everything of a folder but its graphs and weights. Raises as `OnnxPolicy`."""

    def __init__(self, folder: Path, statistics_key: str | None) -> None:
        self.record = record = read_record(folder)
        self.head = head_of(folder, record)
        self.embodiment: Embodiment | None = read_embodiment(folder)
        self.preprocessor = from_data(str(folder / RECORD), record.preprocessing)
        datasets = read_statistics(folder)
        if datasets is None:
            raise CheckpointError(f"{folder / STATISTICS} is missing; an exported folder needs it. Copy it again.")
        self.statistics = Statistics(datasets, statistics_key or record.statistics_key, self.head.bounds)
        require_statistics(self.statistics)
        prompts = ExportedPrompts.read(folder, record.prompt)
        self.reader = InputReader(record.inputs, prompts, self.statistics, record.cameras)


def build(recipe: OnnxRecipe, embodiment: Embodiment | None, expert: str | None) -> OnnxPolicy:
    """Build the policy of a recipe as `load_policy` does."""
    policy = OnnxPolicy(recipe.checkpoint, recipe.provider, recipe.threads, recipe.statistics_key)
    if policy.embodiment is not None and embodiment is not None:
        require_fit(policy.embodiment, embodiment)
    return policy


def check(recipe: OnnxRecipe) -> None:
    """Check the folder of a recipe as `check_policy` does."""
    folder = recipe.checkpoint
    small = _SmallFiles(folder, recipe.statistics_key)
    missing = [name for name in file_names(small.record) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder / missing[0]} is missing; {WEIGHTS} and all graphs are needed. Copy it again.")
