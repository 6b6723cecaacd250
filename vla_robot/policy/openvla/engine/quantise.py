"""OpenVLA with matrices of fewer bits: those of the towers and projectors, and those of its language model."""

from __future__ import annotations

from typing import Any

from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.reason import Decoder
from vla_robot.policy.vla.engine.quantise import arriving, converter, fixed, linears, quantise_linears
from vla_robot.policy.vla.reason.reasoner import Reasoner
from vla_robot.policy.vla.reason.text_reasoner import TextReasoner


def quantise(model: OpenVLA, reasoner: Reasoner[Any], how: str, fuse: bool = False) -> None:
    """Replace the matrices of the towers, the projectors and the language model, in place.

    Those that are still in main memory come to the model's device one after the other. With `fuse`, the rounding of
    activations for fp8 is compiled.

    Afterwards the model acts, but cannot be trained or saved: the language model's own matrices are gone.

    Raises:
        PolicyError, MissingDependencyError: as `require_quantiser`.
    """
    convert = arriving(converter(how, model.weight.device, fuse), model.weight.device)
    for part in (model.vision_backbone, model.projector, model.proprio_projector):
        quantise_linears(linears(part), convert)
    if isinstance(reasoner, TextReasoner):
        quantise_linears(linears(model.language_model.model.layers), convert)
        return
    assert isinstance(reasoner, Decoder)
    for module in linears(model.language_model.model.layers):
        # The layer's shape is still read; its numbers live on in the decoder.
        module.weight = fixed(module.weight.detach().to("meta"))
    reasoner.convert(convert)
