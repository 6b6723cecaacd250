"""A family of transformers' vision-language models: its description, and what all of them do with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, RecipeError
from vla_robot.core.host.optional import require
from vla_robot.policy.vla.checkpoint import Checkpoint
from vla_robot.policy.vla.codecs.bins import openvla_bins
from vla_robot.policy.vla.codecs.folder import codec_block, write_codec
from vla_robot.policy.vla.codecs.mark import require_mark
from vla_robot.policy.vla.codecs.plan import BINS, added_rows, codec_of_new, planned_codec
from vla_robot.policy.vla.engine.compiled import require_one_graph
from vla_robot.policy.vla.first_weights import draw_first_weights
from vla_robot.policy.vla.heads.policy import policy_class, require_tokens
from vla_robot.policy.vla.heads.sizes import block_with_head, planned_head
from vla_robot.policy.vla.inputs.image_preprocessing import NONE, require_preprocessing
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor
from vla_robot.policy.vla.inputs.prompts import ASKED_FOR_ACTION, new_tokenizer, read_tokenizer
from vla_robot.policy.vla.inputs.statistics import Statistics, require_statistics
from vla_robot.policy.vla.json_files import OUR_BLOCK, read_json, require_folder, shown, write_json
from vla_robot.policy.vla.loading import PLAIN, Loading
from vla_robot.policy.vla.model import AnyVLAModel
from vla_robot.policy.vla.policy import VLAPolicy
from vla_robot.policy.vla.safetensors_files import Rows
from vla_robot.policy.vla.small_files import read_embodiment, read_statistics
from vla_robot.policy.vlm.config import VLMConfig, block_of, require_plain, without_implementation
from vla_robot.policy.vlm.layout import Layout, Place
from vla_robot.policy.vlm.model import TransformersModel
from vla_robot.policy.vlm.prompts import TEXT, Template, TemplatePrompts
from vla_robot.policy.vlm.weights import (
    EXTRAS,
    add_extras,
    fill_extras,
    grow,
    load_vlm,
    mark_codec,
    require_weights,
    rows_of,
    save_in_turn,
    save_vlm,
)
from vla_robot.recipe.finetune import Architecture, CodecRecipe, HeadRecipe
from vla_robot.recipe.policy import CheckpointRecipe, VLARecipe

USUAL_FRAME = 224
"""Edge of the frame [px] by which a model of any frame size is measured and tested if its folder names no arm."""

type VLMCheckpoint = Checkpoint[VLMConfig, TemplatePrompts, FramePreprocessor]
type VLMPolicy = VLAPolicy[TransformersModel, TemplatePrompts, FramePreprocessor]


@dataclass(frozen=True)
class TransformersFamily:
    """See `vla.family.Family`.

    Attributes:
        model_type: of config.json.
        vlm: name of transformers' class with the head.
        model: our class around it.
        sub_types: key of a part of config.json -> `model_type` values that it may have.
        template: the prompt.
        preprocessor: reads how frames become pixels from a folder and its config.json.
        nano: maps the sizes of a new model, the rows of its vocabulary and its tokenizer to a config.json.
        control_tokens: control tokens of a new tokenizer: padding first, then the unknown one, then the template's.
        processor: content of preprocessor_config.json of a new folder with frames of an edge [px].
        resized: rewrites a folder for frames of another edge [px], given transformers' class and the content of
            config.json; None where that is not done.
    """

    model_type: str
    vlm: str
    model: type[TransformersModel]
    sub_types: Mapping[str, Collection[str]]
    template: Template
    preprocessor: Callable[[Path, Mapping[str, Any]], FramePreprocessor]
    nano: Callable[[Architecture, int, Tokenizer], dict[str, Any]]
    control_tokens: tuple[str, ...]
    processor: Callable[[int], dict[str, Any]]
    resized: Callable[[Path, Any, Mapping[str, Any], int], None] | None = None

    kind = "vla"

    def read(self, folder: Path, image_preprocessing: str = NONE) -> VLMCheckpoint:
        """See `Family`."""
        require_folder(folder)
        config = self._config(folder)
        preprocessor = self.preprocessor(folder, config.published)
        prompts = TemplatePrompts(read_tokenizer(folder), self.template_of(preprocessor))
        return Checkpoint(
            config,
            preprocessor.after(require_preprocessing(image_preprocessing)),
            prompts,
            read_embodiment(folder),
        )

    def load(self, folder: Path, how: Loading = PLAIN) -> VLMPolicy:
        """See `Family`."""
        at = how.placement()
        checkpoint = self.read(folder, how.image_preprocessing)
        if how.compiled:
            require_tokens(checkpoint.config.head is not None)
            require_one_graph(self.model, checkpoint.config.codec)
        # Matrices that get fewer bits come to the device one by one.
        on_the_way = how.quantise is not None and not how.trainable
        model = self._model(folder, checkpoint, at.precision, torch.device("cpu") if on_the_way else at.device)
        if not how.trainable:
            model.fix(at.device, how.quantise, at.fused)
        policy = policy_class(model)(
            model,
            checkpoint.preprocessor,
            checkpoint.tokenizer,
            checkpoint.config.norm_stats,
            checkpoint.embodiment,
            how.statistics_key,
            how.compiled,
        )
        if at.has_weights:
            policy.self_test()
        return policy

    def check(self, folder: Path, statistics_key: str | None = None, image_preprocessing: str = NONE) -> None:
        """See `Family`."""
        config = self.read(folder, image_preprocessing).config
        require_statistics(Statistics(config.norm_stats, statistics_key))
        require_weights(folder, self._class, config.published)
        require_mark(folder / EXTRAS, config.codec)

    def template_of(self, preprocessor: FramePreprocessor) -> Template:
        """Return the prompt of a folder with this preprocessor; it depends on it if a frame becomes several images."""
        return self.template

    def load_model(self, folder: Path, dtype: torch.dtype, device: torch.device) -> TransformersModel:
        """See `Family`."""
        return self._model(folder, self.read(folder), dtype, device)

    def rows(self, folder: Path) -> dict[str, Rows]:
        """See `Family`."""
        return rows_of(self.on_meta(folder), folder)

    def save_in_turn(self, start: Path, folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """See `Family`."""
        save_in_turn(self.on_meta(start), start, folder, tensors)

    def on_meta(self, folder: Path) -> TransformersModel:
        """See `Family`. Frames are uncut; without an arm and a preprocessor in the folder, they
        are square."""
        config = self._config(folder, needs_all=False)
        state = () if config.proprio_dim is None else (Place.STATE,)
        with torch.device("meta"):
            vlm = self._class(self._class.config_class.from_dict(config.published))
            return self.model(vlm, config, Layout((*(Place.IMAGE,) * config.num_images, *state)))

    def save_model(self, model: AnyVLAModel, folder: Path, start: Path) -> None:
        """See `Family`."""
        assert isinstance(model, TransformersModel)
        save_vlm(model, folder)

    def resize(self, folder: Path, edge: int) -> None:
        """See `Family`."""
        if self.resized is None:
            raise RecipeError(f"{folder}: the resolution of a {self.model_type} is not changed here; leave it out.")
        self.resized(folder, self._class, without_implementation(read_json(folder / "config.json")), edge)
        self.check(folder)

    def acts(self, folder: Path) -> bool:
        """See `Family`."""
        return OUR_BLOCK in read_json(folder / "config.json")

    def adopt(
        self,
        source: Path,
        folder: Path,
        embodiment: Embodiment,
        statistics: Mapping[str, Any],
        codec: CodecRecipe | None = None,
        chunk: int = 1,
    ) -> None:
        """See `Family`. The policy does not read the arm's state, for which the model has no token."""
        tokenizer, vocabulary = read_tokenizer(source), self._config(source, needs_all=False).vocabulary
        end = TemplatePrompts(tokenizer, self.template).eos
        planned = planned_codec(codec, tokenizer, vocabulary, end, chunk, len(embodiment.action))
        shutil.copytree(source, folder)
        if more := added_rows(planned, vocabulary):
            grow(folder, self._class, without_implementation(read_json(source / "config.json")), vocabulary + more)
        block = {**codec_block(planned), "num_images": len(embodiment.cameras), "chunk": chunk}
        write_json(folder / "config.json", {**read_json(folder / "config.json"), OUR_BLOCK: block})
        write_codec(planned, folder)
        mark_codec(folder, planned)
        write_json(folder / "dataset_statistics.json", statistics)
        write_json(folder / "embodiment.json", embodiment.to_dict())
        self.check(folder)

    def create(
        self,
        folder: Path,
        architecture: Architecture,
        embodiment: Embodiment,
        statistics: Mapping[str, Any],
        instructions: Iterable[str],
        seed: int,
        codec: CodecRecipe | None = None,
        chunk: int = 1,
        head: HeadRecipe | None = None,
    ) -> None:
        """See `Family`."""
        asks = (self.template.text.replace(TEXT, ASKED_FOR_ACTION.format(instruction=t.lower())) for t in instructions)
        tokenizer, words = new_tokenizer(architecture, asks, self.control_tokens)
        end = TemplatePrompts(tokenizer, self.template).eos
        planned = codec_of_new(codec, tokenizer, words, end, chunk, len(embodiment.action))
        vocabulary = words + added_rows(planned, words)
        published = self.nano(architecture, vocabulary, tokenizer)
        config = VLMConfig(
            published,
            (architecture.image_size, architecture.image_size),
            vocabulary,
            planned,
            num_images=len(embodiment.cameras),
            proprio_dim=len(embodiment.state) if architecture.use_state else None,
            chunk=chunk,
            head=planned_head(head, len(embodiment.action)),
        )
        torch.manual_seed(seed)
        vlm = self._class(self._class.config_class.from_dict(published))
        draw_first_weights(vlm, architecture)
        save_vlm(self._wrap(vlm, config, TemplatePrompts(tokenizer, self.template)), folder)
        write_json(folder / "preprocessor_config.json", self.processor(architecture.image_size))
        write_json(folder / "dataset_statistics.json", statistics)
        write_json(folder / "embodiment.json", embodiment.to_dict())
        tokenizer.save(str(folder / "tokenizer.json"))

    def give_head(self, folder: Path, recipe: HeadRecipe, embodiment: Embodiment, chunk: int, seed: int) -> None:
        """See `Family`."""
        data, old = read_json(folder / "config.json"), self._config(folder)
        block, _ = block_with_head(recipe, embodiment, chunk, old.proprio_dim)
        write_json(folder / "config.json", {**data, OUR_BLOCK: {**data[OUR_BLOCK], **block}})
        self.on_meta(folder)  # raises if the masks do not allow the head
        torch.manual_seed(seed)
        add_extras(folder, self._config(folder), self._class.config_class.from_dict(old.published).get_text_config())

    def recipe_of(self, folder: Path, key: str) -> CheckpointRecipe:
        """See `Family`."""
        return VLARecipe(checkpoint=Path("."), statistics_key=key)

    @property
    def _class(self) -> Any:
        return getattr(transformers, self.vlm)

    def _config(self, folder: Path, needs_all: bool = True) -> VLMConfig:
        """Read config.json, with what follows from the other files; if they are not needed, usual values stand in."""
        path = folder / "config.json"
        data = read_json(path)
        if data.get("model_type") != self.model_type:
            found = shown(data.get("model_type"))
            raise CheckpointError(f"{path}: model_type is {found}, expected {self.model_type!r}.")
        require_plain(str(path), data, self.sub_types)
        published = without_implementation(data)
        try:
            text = self._class.config_class.from_dict(published).get_text_config()
            vocabulary = int(text.vocab_size)
        except Exception as error:  # transformers validates in many ways
            raise CheckpointError(f"{path} does not make a {self.vlm}: {error}.") from error
        if needs_all or (folder / "preprocessor_config.json").is_file():
            frame = self._frame(folder, published)
        else:
            edge = published.get("vision_config", {}).get("image_size", USUAL_FRAME)
            frame = edge, edge
        block: dict[str, Any] = {"codec": openvla_bins(vocabulary, BINS)}  # of a model that does not act
        if needs_all or OUR_BLOCK in data:
            block = block_of(folder, data, vocabulary)
        return VLMConfig(
            published,
            frame,
            vocabulary,
            norm_stats=read_statistics(folder) or {},
            pad_token_id=text.pad_token_id or 0,
            **block,
        )

    def _frame(self, folder: Path, published: Mapping[str, Any]) -> tuple[int, int]:
        """Return the size of the arm's frames after resizing, or of a square one if the folder names no arm."""
        preprocessor, arm = self.preprocessor(folder, published), read_embodiment(folder)
        usual = [(camera.height, camera.width) for camera in arm.cameras] if arm else []
        sizes = {preprocessor.shape(*each) for each in usual or [(USUAL_FRAME, USUAL_FRAME)]}
        if len(sizes) > 1:
            raise CheckpointError(
                f"{folder}: the frames of its cameras have different sizes after resizing, {sorted(sizes)}; give all "
                "cameras one aspect ratio."
            )
        return sizes.pop()

    def _model(
        self, folder: Path, checkpoint: VLMCheckpoint, dtype: torch.dtype, device: torch.device
    ) -> TransformersModel:
        config, prompts = checkpoint.config, checkpoint.tokenizer
        assert prompts is not None  # `read` raises for a folder without a tokenizer
        if device.type == "meta":
            return self._empty(folder, config, prompts, dtype)
        vlm = load_vlm(folder, self._class, config.published, dtype)
        model = self._wrap(vlm, config, prompts)
        fill_extras(model, folder)
        return model.to(device=device, dtype=dtype).requires_grad_(False).eval()

    def _empty(
        self, folder: Path, config: VLMConfig, prompts: TemplatePrompts, dtype: torch.dtype
    ) -> TransformersModel:
        """Return the model without weights, on torch's meta device, and with the buffers that no file has.

        The files' headers alone are read.
        """
        require("accelerate", "learn", "a model without weights")
        from accelerate import init_empty_weights  # only sharded trainings need it

        published = require_weights(folder, self._class, config.published)
        with init_empty_weights(include_buffers=False):
            model = self._wrap(self._class(published), config, prompts)
        model.layout_ids = model.layout.ids  # made where the weights are
        model.vlm.tie_weights()  # the context copies parameters
        return model.to(dtype=dtype).requires_grad_(False).eval()

    def _wrap(self, vlm: Any, config: VLMConfig, prompts: TemplatePrompts) -> TransformersModel:
        return self.model(vlm, config, prompts.layout(config.num_images, config.proprio_dim is not None))
