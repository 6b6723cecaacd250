"""Inference as a user would write it from the model card: timm's towers, a projector, transformers' `generate`.

It shares the weights of a loaded policy but none of its engine, so that `vla bench policy` and the tests can compare
with it: it computes whole towers and the whole vocabulary, with transformers' cache, one observation at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor, nn
from torch.nn.functional import gelu

from vla_robot.core.messages import Image
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.perceive import Tower, build_vit
from vla_robot.policy.vla import layout
from vla_robot.policy.vla.inputs.preprocess import Preprocessor


class Baseline:
    """Plain inference with the weights of a loaded model."""

    def __init__(self, model: OpenVLA, preprocessor: Preprocessor) -> None:
        """Build whole towers, whose unused last block is random. Other weights are the policy's own where torch's
        layout allows, and copies elsewhere."""
        backbone = model.vision_backbone
        ours = [backbone.featurizer] + ([backbone.fused_featurizer] if backbone.fused_featurizer is not None else [])
        self._language_model: Any = layout.as_torch_has_it(model.language_model)  # its type stubs hide `generate`
        self._projector = layout.as_torch_has_it(model.projector)
        self._proprio_projector = (
            None if model.proprio_projector is None else layout.as_torch_has_it(model.proprio_projector)
        )
        self._preprocessor = preprocessor
        self._towers = [_whole(tower, build_vit(model.config, index)) for index, tower in enumerate(ours)]

    @torch.inference_mode()
    def tokens(self, images: Sequence[Image], input_ids: NDArray[np.int64], state: Tensor | None, dims: int) -> Tensor:
        """Generate the tokens of one observation.

        Args:
            images: one (H, W, 3) uint8 frame per camera.
            input_ids: (L,) ids of the whole prompt.
            state: (1, proprio_dim) normalised, or None.
            dims: number of tokens to generate.

        Returns:
            (dims,) int64 ids over the whole vocabulary.
        """
        weight = self._projector.fc1.weight
        per_camera = [self._project(self._features(image).to(weight)) for image in images]
        text = self._language_model.model.embed_tokens(torch.tensor(input_ids, device=weight.device)[None])
        seen = [*per_camera, *self._state(state)]
        embeds = torch.cat([text[:, :1], *seen, text[:, 1:]], dim=1)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=weight.device)

        out = self._language_model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=dims, min_new_tokens=dims, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        return out[0]

    def _features(self, image: Image) -> Tensor:
        """Return (1, P, vision_dim) features of (H, W, 3); each tower has its own resize and normalisation."""
        size = self._preprocessor.size
        features: list[Tensor] = []
        for index, tower in enumerate(self._towers):
            square = PillowImage.fromarray(image).resize((size, size), PillowImage.Resampling.BICUBIC)
            x = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
            mean, std = (torch.tensor(values[index])[:, None, None] for values in self._statistics)
            pixels = ((x - mean) / std)[None].to(self._projector.fc1.weight)
            features += tower.get_intermediate_layers(pixels, n={len(tower.blocks) - 2})
        return torch.cat(features, dim=2)

    @property
    def _statistics(self) -> tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]:
        return self._preprocessor.means, self._preprocessor.stds

    def _project(self, features: Tensor) -> Tensor:
        p = self._projector
        x = p.fc2(gelu(p.fc1(features)))
        return x if p.fc3 is None else p.fc3(gelu(x))

    def _state(self, state: Tensor | None) -> list[Tensor]:
        projector = self._proprio_projector
        return [] if projector is None or state is None else [projector(state.to(projector.fc1.weight))]


def _whole(tower: Tower, vit: nn.Module) -> Any:
    """Load our weights into timm's tower; its last block, which ours lacks, stays random."""
    weight = next(tower.parameters())
    vit.load_state_dict(tower.state_dict(), strict=False)
    return vit.to(weight).eval().requires_grad_(False)
