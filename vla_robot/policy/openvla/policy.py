"""OpenVLA as a Policy: what it has beyond every vision-language-action model, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, PolicyError
from vla_robot.core.messages import Image
from vla_robot.policy.device import torch_device
from vla_robot.policy.openvla.checkpoint import read_checkpoint
from vla_robot.policy.openvla.engine.quantise import quantise
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.reason import Decoder
from vla_robot.policy.openvla.prompt import OpenVLAPrompts, finish
from vla_robot.policy.openvla.weights import load_model, require_complete
from vla_robot.policy.outline import Outline, outline_of
from vla_robot.policy.roofline import costs_of
from vla_robot.policy.vla.engine.compiled import require_one_graph
from vla_robot.policy.vla.engine.quantise import memory_bytes
from vla_robot.policy.vla.heads.policy import HeadPolicy
from vla_robot.policy.vla.inputs.image_preprocessing import NONE
from vla_robot.policy.vla.inputs.observations import Batch
from vla_robot.policy.vla.inputs.preprocess import Preprocessor
from vla_robot.policy.vla.inputs.statistics import Statistics, require_statistics
from vla_robot.policy.vla.loading import COMPILED_AND_QUANTISED, PLAIN, Loading
from vla_robot.policy.vla.policy import VLAPolicy

LLAMA_SPACE = 29871
"""Llama's id of the space token, for checkpoints without a tokenizer."""


class OpenVLAPolicy(VLAPolicy[OpenVLA, OpenVLAPrompts, Preprocessor]):
    """A loaded checkpoint of OpenVLA that acts; it can be compiled and quantised.

    Attributes:
        outline: sizes of the model, for arithmetic.
    """

    def __init__(
        self,
        model: OpenVLA,
        preprocessor: Preprocessor,
        tokenizer: OpenVLAPrompts | None,
        statistics: Mapping[str, Mapping[str, Any]],
        embodiment: Embodiment | None = None,
        statistics_key: str | None = None,
        compiled: bool = False,
        fuse: bool = False,
    ) -> None:
        super().__init__(model, preprocessor, tokenizer, statistics, embodiment, statistics_key, compiled)
        self.outline = outline_of(model)
        self._finish = partial(finish, space=LLAMA_SPACE) if tokenizer is None else tokenizer.finish
        self._is_fused = False
        if fuse and not compiled:  # which fuses everything already
            self.fuse()

    def fuse(self, on: bool = True) -> None:
        """Join the work between matrix products into one kernel each, compiled when it first runs; or undo that."""
        self._is_fused = on
        self.model.fuse(on)
        if isinstance(self._reasoner, Decoder):
            self._reasoner.fuse(on)
        self._forget_blocks()

    def quantise(self, how: str) -> None:
        """Quantise the matrices to "fp8", "int8" or "int4" in place; embeddings, norms and the action rows stay.

        Raises:
            PolicyError: the quantisation is unknown, or the policy is compiled.
            MissingDependencyError: torchao or bitsandbytes is absent.
        """
        if self.is_compiled:
            raise PolicyError(COMPILED_AND_QUANTISED)
        quantise(self.model, self._reasoner, how, self._is_fused)
        self._forget_blocks()

    def memory_bytes(self) -> int:
        """Return the bytes that the weights occupy."""
        matrices = self._reasoner.matrices() if isinstance(self._reasoner, Decoder) else []
        return memory_bytes((*self.model.parameters(), *self.model.buffers(), *matrices))

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

    def _bare_batch(
        self, images: Sequence[Image | Sequence[Image]], input_ids: Sequence[NDArray[np.int64]], state: Tensor | None
    ) -> Batch:
        rows = [[row] if isinstance(row, np.ndarray) else list(row) for row in images]
        return Batch(self._pixels(rows), [self._finish(ids) for ids in input_ids], state)

    def flops(self, batch: Batch) -> float:
        return _flops(self.outline, len(batch.prompts), max(map(len, batch.prompts)))

    @property
    def _decoder(self) -> Decoder:
        assert isinstance(self._reasoner, Decoder)
        return self._reasoner


@lru_cache(maxsize=64)
def _flops(outline: Outline, batch: int, text_tokens: int) -> float:
    return sum(cost.flops for cost in costs_of(outline, batch, text_tokens, answer=7).values())


def load_any(folder: Path, how: Loading = PLAIN) -> OpenVLAPolicy | HeadPolicy[OpenVLA, OpenVLAPrompts, Preprocessor]:
    """Load a policy of tokens, or of a head if config.json names one; errors are those of `load`."""
    torch_device(how.device)  # what is not there is told before anything is read
    return load(folder, how) if OpenVLAConfig.read(folder).head is None else load_with_head(folder, how)


def load(folder: Path, how: Loading = PLAIN) -> OpenVLAPolicy:
    """Load a policy from a checkpoint folder in the published layout.

    Args:
        folder: config.json, safetensors, preprocessor_config.json, tokenizer.json, dataset_statistics.json.
        how: precision, device, and what is done to the weights.

    Raises:
        CheckpointError: the folder is incomplete, damaged or fails the self-test.
        ContractError: the precision, the device or image_preprocessing is unknown, or the device is not there.
        PolicyError: compiling or quantising is impossible on the device, or the quantisation is unknown.
        MissingDependencyError: quantising needs torchao (int8) or bitsandbytes (int4).
    """
    at = how.placement()
    checkpoint = read_checkpoint(folder, how.image_preprocessing)
    if how.compiled:
        require_one_graph(OpenVLA, checkpoint.config.codec)
    stays = how.quantise is not None
    acting = not how.trainable and not stays
    policy = OpenVLAPolicy(
        load_model(folder, checkpoint.config, at.precision, at.device, acting=acting, matrices_stay=stays),
        checkpoint.preprocessor,
        checkpoint.tokenizer,
        checkpoint.config.norm_stats,
        checkpoint.embodiment,
        how.statistics_key,
        how.compiled,
        at.fused,
    )
    if how.quantise is not None:
        policy.quantise(how.quantise)
    if at.has_weights:
        policy.self_test()
    return policy


def load_with_head(folder: Path, how: Loading = PLAIN) -> HeadPolicy[OpenVLA, OpenVLAPrompts, Preprocessor]:
    """Load a policy whose config.json names an action head; arguments and errors are those of `load`."""
    if how.compiled or how.quantise:
        raise PolicyError("a policy with an action head is neither compiled nor quantised: leave both out.")
    if how.fuse:
        raise PolicyError("only OpenVLA's own layout and OpenVLA-OFT's are fused: leave fuse out of the recipe.")
    at = how.placement()
    checkpoint = read_checkpoint(folder, how.image_preprocessing)
    policy = HeadPolicy(
        load_model(folder, checkpoint.config, at.precision, at.device, acting=not how.trainable),
        checkpoint.preprocessor,
        checkpoint.tokenizer,
        checkpoint.config.norm_stats,
        checkpoint.embodiment,
        how.statistics_key,
    )
    if at.has_weights:
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
    checkpoint = read_checkpoint(folder, image_preprocessing)
    if checkpoint.tokenizer is None:
        raise CheckpointError(f"{folder / 'tokenizer.json'} is missing; a policy needs it to read instructions.")
    require_statistics(Statistics(checkpoint.config.norm_stats, statistics_key))
    require_complete(folder, checkpoint.config)
