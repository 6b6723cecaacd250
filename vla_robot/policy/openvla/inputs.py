"""Inputs: a batch as OpenVLA reads it, perceived and aligned."""

from __future__ import annotations

from torch import Tensor

from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.vla.inputs.observations import Batch, pad_right, require_fit
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vla.sequence.ragged import RaggedSequence


def timer_of(model: OpenVLA) -> StageTimer:
    """Return a timer, started, for an inference of this model on its device."""
    return StageTimer(model.projector.fc1.weight.device)


def embed(model: OpenVLA, batch: Batch, stages: StageTimer | None = None) -> RaggedSequence:
    """Perceive and align: run the towers and projectors.

    Raises:
        ContractError: the batch does not fit the model.
    """
    stages = stages or StageTimer()
    pixels, ids, state, text_lengths = tensors_of(model, batch)
    features = model.vision_backbone(pixels)
    stages.lap("towers")
    embeds = model.align(features, ids, state)
    stages.lap("projector")
    return RaggedSequence(embeds, text_lengths + embeds.shape[1] - ids.shape[1])


def tensors_of(model: OpenVLA, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return a batch's tensors on the model's device and in its precision.

    Returns:
        (B, N, C, S, S) pixels, (B, L) ids padded at the right, (B, P) state or None, (B,) real ids per row; the
        last in main memory, where reading it waits for no device.

    Raises:
        ContractError: the batch does not fit the model.
    """
    require_fit(batch, model.config.inputs)
    weight = model.projector.fc1.weight
    ids, lengths = pad_right(batch.prompts, model.config.pad_token_id)
    state = None if batch.state is None else batch.state.to(weight)
    return batch.pixels.to(weight), ids.to(weight.device), state, lengths
