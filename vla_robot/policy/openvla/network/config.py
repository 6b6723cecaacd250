"""Reads a checkpoint's config.json strictly.

The published keys keep their meaning. What this project adds (small towers, several cameras, the arm's
state) is in one block named "vla_robot", which the reference ignores.

Source of the layout: openvla/openvla @c8f03f48, prismatic/extern/hf/configuration_prismatic.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_robot.core.errors import CheckpointError, unknown
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.openvla.network import config_limits as limits
from vla_robot.policy.vla.codecs.bins import openvla_bins
from vla_robot.policy.vla.codecs.folder import named_codec
from vla_robot.policy.vla.heads.sizes import HeadSizes, head_of
from vla_robot.policy.vla.inputs.reader import InputSizes
from vla_robot.policy.vla.json_files import OUR_BLOCK, read_json, whole
from vla_robot.policy.vla.small_files import table_of

RESIZE_STRATEGIES = ("resize-naive", "letterbox", "resize-crop")


@dataclass(frozen=True)
class OpenVLAConfig:
    """The architecture of one checkpoint.

    Attributes:
        timm_model_ids: towers in channel order; OpenVLA: DINOv2 then SigLIP.
        timm_override_act_layers: activation by tower, None for timm's own (exact GELU).
        image_size: edge of the square tower input [px].
        image_resize_strategy: how a frame becomes square; one of RESIZE_STRATEGIES.
        text_config: keyword arguments of the language model's configuration in transformers; absent ones take its
            defaults, so that a Llama's rms_norm_eps is 1e-6 and not Meta's 1e-5.
        text_type: `model_type` of the language model: "llama" (OpenVLA) or "qwen2" (MiniVLA).
        pad_to_multiple_of: padding rows of a Llama's vocabulary, before which action ids end.
        action_end: one past the last action id of another language model; None for a Llama.
        pad_token_id: id that pads training text at the right.
        n_action_bins: number of action ids, 256 for OpenVLA.
        norm_stats: dataset name -> statistics, as in dataset_statistics.json.
        tower_overrides: by tower, keyword arguments that replace timm's; empty for the published sizes.
        num_images: cameras per observation; their patches follow each other in the sequence, as in OpenVLA-OFT.
        proprio_dim: length of the state vector that follows the patches as one token, or None, as in OpenVLA-OFT.
        chunk: K, consecutive actions of one answer, token by token; 1 for every published OpenVLA.
        named_codec: the codec that the folder names in codec.json; None for OpenVLA's own.
        head: gives actions as numbers; None for a policy of tokens.
        codec: how actions are said: as codec.json says, or by OpenVLA's bins over the ids of config.json.
    """

    timm_model_ids: tuple[str, ...]
    text_config: Mapping[str, Any]
    text_type: str = "llama"
    image_size: int = 224
    image_resize_strategy: str = "resize-naive"
    timm_override_act_layers: tuple[str | None, ...] = (None, None)
    pad_to_multiple_of: int = 64
    action_end: int | None = None
    pad_token_id: int = 32000
    n_action_bins: int = 256
    norm_stats: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tower_overrides: tuple[Mapping[str, Any], ...] = ()
    num_images: int = 1
    proprio_dim: int | None = None
    chunk: int = 1
    named_codec: ActionCodec | None = None
    head: HeadSizes | None = None
    codec: ActionCodec = field(init=False, repr=False)
    published: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    def __post_init__(self) -> None:
        if self.image_resize_strategy not in RESIZE_STRATEGIES:
            raise CheckpointError(unknown("image_resize_strategy", self.image_resize_strategy, RESIZE_STRATEGIES))
        if len(self.timm_model_ids) not in (1, 2):
            raise CheckpointError(f"timm_model_ids must name one or two towers, got {list(self.timm_model_ids)}.")
        if self.chunk < 1:
            raise CheckpointError(f"chunk is {self.chunk}; an answer has at least 1 action.")
        bins = self.named_codec or openvla_bins(self.action_vocab_end, self.n_action_bins, self.chunk)
        object.__setattr__(self, "codec", bins)

    @property
    def inputs(self) -> InputSizes:
        """The sizes of what the model reads."""
        return InputSizes(self.image_size, self.num_images, self.proprio_dim, int(self.text_config["vocab_size"]))

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width of a frame after resizing [px]."""
        return self.image_size, self.image_size

    @property
    def action_vocab_end(self) -> int:
        """One past the last action token id."""
        if self.action_end is not None:
            return self.action_end
        return int(self.text_config["vocab_size"]) - self.pad_to_multiple_of

    @property
    def num_words(self) -> int:
        """Rows of the vocabulary of which a text consists: a Llama's are those before the first action."""
        if self.action_end is not None:
            return int(self.text_config["vocab_size"])
        if self.named_codec is not None:
            return self.action_vocab_end
        return self.action_vocab_end - self.n_action_bins

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str, folder: Path | None = None) -> OpenVLAConfig:
        """Make a configuration from the content of config.json, and of codec.json if `folder` has one.

        Raises:
            CheckpointError: it is not an OpenVLA configuration, or a field is missing or impossible.
        """
        kind = data.get("model_type")
        if kind != "openvla":
            raise CheckpointError(f"{source}: model_type is {kind!r}, expected 'openvla'.")
        towers = limits.tower_names(source, data.get("timm_model_ids"))
        kind, text = limits.text_config(source, data.get("text_config"))
        vocab = text["vocab_size"]
        ours, stats = table_of(source, data, OUR_BLOCK), table_of(source, data, "norm_stats")

        def size(key: str, default: int, largest: int, smallest: int = 1, table: Mapping[str, Any] = data) -> int:
            return whole(source, key, table.get(key, default), largest, smallest)

        end = None
        if kind != "llama":
            end = limits.action_vocab_end(source, data.get("llm_backbone_id"), ours.get("action_vocab_end"), vocab)

        return cls(
            timm_model_ids=towers,
            text_config=text,
            text_type=kind,
            action_end=end,
            image_size=_image_size(source, data.get("image_sizes")),
            image_resize_strategy=data.get("image_resize_strategy", "letterbox"),
            timm_override_act_layers=limits.activations(source, data.get("timm_override_act_layers"), len(towers)),
            pad_to_multiple_of=size("pad_to_multiple_of", 64, vocab - 1, smallest=0),
            pad_token_id=size("pad_token_id", 32000, vocab - 1, smallest=0),
            n_action_bins=size("n_action_bins", 256, (end or vocab) - 1, smallest=2),
            norm_stats=stats,
            tower_overrides=limits.tower_overrides(source, ours.get("tower_overrides"), len(towers)),
            num_images=size("num_images", 1, 16, table=ours),
            proprio_dim=None if ours.get("proprio_dim") is None else size("proprio_dim", 1, 1024, table=ours),
            chunk=(chunk := size("chunk", 1, 1000, table=ours)),
            named_codec=named_codec(source, ours, folder, chunk, vocab),
            head=head_of(source, ours),
            published=dict(data),
        )

    @classmethod
    def read(cls, folder: Path) -> OpenVLAConfig:
        """Read `folder/config.json`. Raises CheckpointError as `from_dict` and `read_json`."""
        return cls.from_dict(read_json(folder / "config.json"), str(folder / "config.json"), folder)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json as it was read, with the present statistics."""
        return {**self.published, "norm_stats": dict(self.norm_stats)}


def _image_size(source: str, sizes: object) -> int:
    if not isinstance(sizes, list) or not 1 <= len(sizes) <= 2:
        raise CheckpointError(f"{source}: image_sizes must be a list of one size in pixels for each tower.")
    if sizes[0] != sizes[-1]:
        raise CheckpointError(f"{source}: image_sizes {sizes} differ; square inputs of one size are needed.")
    return whole(source, "image_sizes", sizes[0], 2048)
