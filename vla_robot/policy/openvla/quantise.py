"""Weight-only int8 through torchao: a quarter of fp32's memory for the matrices, tokens that may differ.

Each row of a matrix keeps one scale; activations stay in the policy's precision. What is read by index (embeddings, the
action rows) and what is small (norms, biases) is left alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vla_robot.core.errors import PolicyError, unknown
from vla_robot.core.optional import require
from vla_robot.policy.openvla.model import OpenVLA
from vla_robot.policy.openvla.reason import Decoder

INT8, INT4 = "int8", "int4"


def require_quantiser(how: str) -> None:
    """Raise unless weights can be quantised this way here.

    Raises:
        PolicyError: the way is unknown, or has no kernel.
        MissingDependencyError: torchao is absent.
    """
    if how not in (INT8, INT4):
        raise PolicyError(unknown("quantisation", how, (INT8, INT4)))
    if how == INT4:
        raise PolicyError(
            "quantise = 'int4' cannot run here: torchao 0.18 packs int4 weights for CUDA only, and this engine "
            "has not been measured with it there. Use quantise = 'int8'."
        )
    require("torchao", "quantise", f"quantise = '{how}'")


def quantise(model: OpenVLA, decoder: Decoder, how: str) -> None:
    """Replace the matrices of the towers, the projectors and the decoder, in place.

    Afterwards the model acts, and neither trains nor can be saved: the language model's own matrices are gone.

    Raises:
        PolicyError, MissingDependencyError: as `require_quantiser`.
    """
    require_quantiser(how)
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # pyright: ignore[reportMissingImports]

    config = Int8WeightOnlyConfig()
    parts = (model.vision_backbone, model.projector, model.proprio_projector)
    for part in parts:
        if part is not None:
            quantize_(part, config)

    def convert(matrix: Tensor) -> Tensor:
        holder = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
        holder.weight = nn.Parameter(matrix, requires_grad=False)
        quantize_(holder, config)
        return holder.weight.detach()

    for module in model.language_model.model.layers.modules():
        if isinstance(module, nn.Linear):  # its shape is still asked for, its numbers live on in the decoder
            module.weight = nn.Parameter(module.weight.detach().to("meta"), requires_grad=False)
    decoder.convert(convert)


def memory_bytes(model: OpenVLA, decoder: Decoder) -> int:
    """Bytes that the weights occupy, each memory counted once."""
    seen: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers(), *decoder.matrices()):
        for part in _parts(tensor):
            if part.device.type != "meta":
                storage = part.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def _parts(tensor: Any) -> list[Tensor]:
    """The plain tensors that a quantised one consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]
