"""The training loop that a user would write without this package, as a baseline.

It uses timm's towers, transformers' Llama with `labels`, peft and a DataLoader.

It shares the weights and the data of a run but not its training loop, so that `vla bench finetune` and the tests can
compare with it: it computes whole towers and the logits of every position, decodes frames on demand, and uses AdamW's
default settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from io import BytesIO
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vla_robot.core.normalise import QuantileStats, normalise
from vla_robot.data.formats.lerobot.demo_dataset import Demos
from vla_robot.data.pipeline.shuffle import Pooled
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.perceive import Tower, build_vit
from vla_robot.policy.openvla.policy import OpenVLAPolicy
from vla_robot.policy.vla.model import IGNORE
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.train.batches.frames import answers_of


class PlainModel(nn.Module):
    """Model that maps pixels and a labelled prompt to the loss."""

    def __init__(self, model: OpenVLA) -> None:
        """Copy a model's weights; the last block of each tower is random, since the loss does not depend on it."""
        super().__init__()
        backbone = model.vision_backbone
        towers = [t for t in (backbone.featurizer, backbone.fused_featurizer) if t is not None]
        self.towers = nn.ModuleList([_whole(tower, build_vit(model.config, i)) for i, tower in enumerate(towers)])
        self.projector = deepcopy(model.projector)
        self.proprio_projector = deepcopy(model.proprio_projector)
        self.language_model = deepcopy(model.language_model)

    def forward(self, pixels: Tensor, input_ids: Tensor, labels: Tensor, state: Tensor | None) -> Tensor:
        """Return the mean cross-entropy, (), of (B, N, C, S, S), (B, L), (B, L), (B, P), as `OpenVLA.forward` does."""
        B = len(pixels)
        frames = pixels.flatten(0, 1)
        features = torch.cat([self._see(index, frames) for index in range(len(self.towers))], dim=2)
        seen = [self.projector(features.reshape(B, -1, features.shape[-1]))]
        if self.proprio_projector is not None and state is not None:
            seen.append(self.proprio_projector(state))
        llama: Any = self.language_model
        text = llama.get_input_embeddings()(input_ids)
        embeds = torch.cat([text[:, :1], *seen, text[:, 1:]], dim=1)
        blank = labels.new_full((B, embeds.shape[1] - input_ids.shape[1]), IGNORE)
        wanted = torch.cat([labels[:, :1], blank, labels[:, 1:]], dim=1)
        return llama(inputs_embeds=embeds, labels=wanted, use_cache=False).loss

    def _see(self, index: int, frames: Tensor) -> Tensor:
        tower: Any = self.towers[index]
        return tower.get_intermediate_layers(frames[:, 3 * index : 3 * index + 3], n={len(tower.blocks) - 2})[0]


def _whole(tower: Tower, vit: Any) -> nn.Module:
    vit.load_state_dict(tower.state_dict(), strict=False)
    return vit.to(next(tower.parameters()).device)


def adapted(model: PlainModel, rank: int, like: Mapping[str, Tensor]) -> nn.Module:
    """Add peft's LoRA matrices to every linear layer but the head; `like` gives their start values by our names."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=min(rank, 16),
        target_modules="all-linear",
        exclude_modules=["lm_head"],
        init_lora_weights="gaussian",
    )
    wrapped = get_peft_model(model, config)  # type: ignore[arg-type]  # it takes any module
    theirs = dict(wrapped.named_parameters())
    with torch.no_grad():
        for name, tensor in like.items():
            theirs["base_model.model." + _plain_name(name)].copy_(tensor)
    return wrapped


def _plain_name(name: str) -> str:
    for index, tower in enumerate(("featurizer", "fused_featurizer")):
        name = name.replace(f"vision_backbone.{tower}.", f"towers.{index}.")
    return name


class PlainFrames(Dataset[dict[str, Tensor]]):
    """Dataset that decodes and prepares each frame of demonstrations when it is asked for."""

    def __init__(self, demos: Demos, policy: OpenVLAPolicy, key: str) -> None:
        assert policy.embodiment is not None
        self._cameras = [camera.name for camera in policy.embodiment.cameras]
        self._encoded = {name: _encoded(demos, name) for name in self._cameras}
        self._demos, self._policy = demos, policy
        self._action = policy.action_stats(key)
        reads_state = policy.model.config.proprio_dim is not None
        self._state = QuantileStats.from_dict(policy.statistics[key]["proprio"]) if reads_state else None

    def __len__(self) -> int:
        return self._demos.num_frames

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        policy, demos = self._policy, self._demos
        prompt = policy.tokenizer(demos.instruction_at(index))
        actions = normalise(demos.actions[index : index + 1], self._action)
        answer = answers_of(actions, policy.codec, policy.tokenizer)[0]
        item = {
            "pixels": torch.stack([self._pixels(self._encoded[name][index]) for name in self._cameras]),
            "input_ids": torch.from_numpy(np.concatenate([prompt, answer])),
            "labels": torch.from_numpy(np.concatenate([np.full(len(prompt), IGNORE), answer])),
        }
        if self._state is not None:
            item["state"] = torch.from_numpy(normalise(demos.states[index], self._state)).float()
        return item

    def _pixels(self, png: bytes) -> Tensor:
        """Return a frame as (3 per tower, S, S) normalised pixels."""
        p = self._policy.preprocessor
        image = PillowImage.open(BytesIO(png)).convert("RGB")
        if image.size != (p.size, p.size):
            image = image.resize((p.size, p.size), PillowImage.Resampling.BICUBIC)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        pairs = zip(p.means, p.stds, strict=True)
        return torch.cat([(x - torch.tensor(m)[:, None, None]) / torch.tensor(s)[:, None, None] for m, s in pairs])


def _encoded(demos: Demos, camera: str) -> list[bytes]:
    """Return every frame of a camera, encoded as it is stored."""
    films = (demos.film(episode, camera) for episode in demos.episodes)
    return [film.encoded(step) for film in films for step in range(len(film))]


class PlainLoop:
    """Training loop that sees the frames in the order of `Trainer` with the same recipe."""

    def __init__(self, model: nn.Module, frames: PlainFrames, recipe: FinetuneRecipe, pad_id: int) -> None:
        self._model = model.train()
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self._clip = recipe.clip_norm
        self._pad_id = pad_id
        order = _Order(len(frames), recipe.batch_size, recipe.seed)
        self._batches = iter(DataLoader(frames, batch_sampler=order, collate_fn=self._collate))

    def load(self) -> dict[str, Tensor | None]:
        """Return the next batch, on the model's device."""
        device = self._parameters[0].device
        return {name: None if part is None else part.to(device) for name, part in next(self._batches).items()}

    def learn(self, batch: dict[str, Tensor | None]) -> float:
        """Take one optimiser step and return its loss."""
        loss = self._model(**batch)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        return loss.item()

    def _collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor | None]:
        def padded(name: str, value: int) -> Tensor:
            return nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

        return {
            "pixels": torch.stack([row["pixels"] for row in rows]),
            "input_ids": padded("input_ids", self._pad_id),
            "labels": padded("labels", IGNORE),
            "state": torch.stack([row["state"] for row in rows]) if "state" in rows[0] else None,
        }


class _Order:
    """Batch sampler that gives each step the frames that `Trainer` gives it."""

    def __init__(self, frames: int, batch_size: int, seed: int) -> None:
        self._order = Pooled([frames], batch_size, seed)

    def __iter__(self) -> Iterator[list[int]]:
        for first in count(step=self._order.size):
            yield [self._order.place(number)[1] for number in range(first, first + self._order.size)]
