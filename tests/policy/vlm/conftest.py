"""Tiny random folders of each family, and what transformers itself says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from benchmarks.models.plain_vlm import OnlyRows
from vla_robot.core.messages import Observation
from vla_robot.policy.families import family_of
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.policy.vlm.layout import Place

from .tiny_vlms import CAMERAS, create

TOKENS = 7
SHARP = 30
"""Factor on the output rows of the actions: logits lie far enough apart that their order is no accident of a sum."""


class _UnifiedInPillow:
    """Gemma 4 unified's frames with Pillow: patches of a whole token's size are what its processor makes by merging.

    Its own processor resizes with torchvision; `test_frames.py` compares the two.
    """

    @staticmethod
    def from_pretrained(folder: str, **more: Any) -> Any:
        library: Any = Gemma4ImageProcessorPil.from_pretrained(folder, **more)
        cell = library.patch_size * library.pooling_kernel_size
        return Gemma4ImageProcessorPil(patch_size=cell, pooling_kernel_size=1, max_soft_tokens=library.max_soft_tokens)


PROCESSORS: dict[str, Any] = {
    "paligemma": SiglipImageProcessorPil,
    "qwen2_vl": Qwen2VLImageProcessorPil,
    "qwen2_5_vl": Qwen2VLImageProcessorPil,
    "qwen3_vl": Qwen2VLImageProcessorPil,
    "gemma4": Gemma4ImageProcessorPil,
    "gemma4_unified": _UnifiedInPillow,
    "smolvlm": SmolVLMImageProcessorPil,
    "idefics3": Idefics3ImageProcessorPil,
}
PIXELS = {
    "gemma4": ("pixel_values", "image_position_ids"),
    "gemma4_unified": ("pixel_values", "image_position_ids"),
    "smolvlm": ("pixel_values", "pixel_attention_mask"),
    "idefics3": ("pixel_values", "pixel_attention_mask"),
}
"""Names of what a processor makes of frames; the others' are those of Qwen's."""


SPLIT = ("smolvlm", "idefics3")
"""Families that cut a frame into images of one size."""


@dataclass(frozen=True)
class Sample:
    """A tiny checkpoint of a family.

    Attributes:
        name: its `model_type`.
        folder: without the arm's state, so that transformers reads the same sequence.
        library: transformers' model, loaded by transformers from the same folder.
    """

    name: str
    folder: Path
    library: Any

    def policy(self) -> AnyVLAPolicy:
        return family_of(self.folder).load(self.folder)

    def inputs(
        self,
        policy: AnyVLAPolicy,
        observation: Observation,
        answer: NDArray[np.int64],
        prompt: NDArray[np.int64] | None = None,
    ) -> dict[str, Tensor]:
        """The library's own inputs for one row: its image processor's pixels, and placeholders for them."""
        processor = PROCESSORS[self.name].from_pretrained(str(self.folder), local_files_only=True)
        frames = [observation.images[camera] for camera in CAMERAS]
        made = processor(frames, return_tensors="pt")
        counts = [self._tokens(made, n) for n in range(policy.model.layout.parts.count(Place.IMAGE))]
        ids: list[int] = []
        for part in policy.model.layout.parts:
            ids += [self.library.config.image_token_id] * counts.pop(0) if part is Place.IMAGE else list(part)
        ids += (policy.tokenizer(observation.instruction) if prompt is None else prompt).tolist()
        prefix = len(ids)
        row = torch.tensor([[*ids, *answer.tolist()]])
        kinds = (row == self.library.config.image_token_id).long()
        inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        if self.name == "paligemma":
            inputs["token_type_ids"] = (torch.arange(row.shape[1]) >= prefix).long()[None]
            return inputs | {"pixel_values": made["pixel_values"]}
        if self.name in SPLIT:
            return inputs | {name: made[name] for name in PIXELS[self.name]}
        names = PIXELS.get(self.name, ("pixel_values", "image_grid_thw"))
        return inputs | {"mm_token_type_ids": kinds} | {name: made[name] for name in names}

    def _tokens(self, made: Any, image: int) -> int:
        if self.name == "paligemma":
            return (28 // 14) ** 2
        if self.name in SPLIT:
            return (56 // 14 // 2) ** 2
        if self.name.startswith("gemma4"):
            return int(made["num_soft_tokens_per_image"][image])
        return int(made["image_grid_thw"][image].prod()) // 4

    @torch.inference_mode()
    def generate(self, policy: AnyVLAPolicy, observation: Observation) -> tuple[list[int], Tensor]:
        """The library's greedy tokens over the action rows, and (256,) logits of the first one."""
        config = policy.model.config
        first, end = config.codec.ids[0], config.codec.ids[-1] + 1
        out = self.library.generate(
            **self.inputs(policy, observation, np.empty(0, np.int64)), max_new_tokens=TOKENS, min_new_tokens=TOKENS,
            do_sample=False, eos_token_id=None, pad_token_id=0, return_dict_in_generate=True, output_logits=True,
            logits_processor=LogitsProcessorList([OnlyRows(slice(first, end))]),
        )  # fmt: skip
        return out.sequences[0, -TOKENS:].tolist(), out.logits[0][0, first:end]


def _sample(folder: Path, name: str) -> Sample:
    """A folder whose weights transformers wrote, without a norm of ones, a bias of zeros or a scalar of one."""
    create(folder, name, use_state=False)
    block = json.loads((folder / "config.json").read_text())["vla_robot"]
    library = transformers.AutoModelForImageTextToText.from_pretrained(str(folder), local_files_only=True).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in library.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        library.lm_head.weight[block["action_vocab_end"] - block["n_action_bins"] : block["action_vocab_end"]] *= SHARP
        for key, buffer in library.named_buffers():
            if key.endswith("layer_scalar"):
                buffer.fill_(0.8)
    library.save_pretrained(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vla_robot": block}))
    return Sample(name, folder, library)


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Sample]:
    return lru_cache(lambda name: _sample(tmp_path_factory.mktemp(name), name))


@pytest.fixture(scope="session", params=PROCESSORS)
def sample(request: pytest.FixtureRequest, samples: Callable[[str], Sample]) -> Sample:
    return samples(request.param)
