"""Draws the five arrows of each family: pixels to patches, connector, sequence and mask, positions, tokens to actions.

Sizes of a new model are those of `[architecture]`'s defaults. Frames are resized, masks made and positions counted by
the code that policies run.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import PIL.Image
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from vla_robot.policy.gemma4.family import GEMMA4, GEMMA4_UNIFIED
from vla_robot.policy.openvla.create import ACTION_BINS
from vla_robot.policy.paligemma.family import PALIGEMMA
from vla_robot.policy.qwen_vl.family import QWEN2_VL
from vla_robot.policy.smolvlm.family import SMOLVLM
from vla_robot.policy.vla.inputs.prompts import train_tokenizer
from vla_robot.policy.vla.sequence.masks import FULL, SLIDING, MaskRule
from vla_robot.policy.vla.sequence.positions import ImageSpan, mrope
from vla_robot.policy.vlm.family import TransformersFamily
from vla_robot.policy.vlm.native_images import Budget, filling, within
from vla_robot.policy.vlm.split_images import multiples, scaled
from vla_robot.recipe.finetune import Architecture

FRAME = (480, 640)
"""Height and width [px] of the camera's frame."""
NANO = Architecture()
NANO_FRAME = (NANO.image_size, NANO.image_size)

IMAGE, TEXT, STATE, ANSWER = "#4c78c9", "#9aa3b2", "#3f9b6c", "#e08a2b"
INK, SOFT, LINE, BOX = "#16233b", "#5d6b82", "#c9d0dc", "#f5f7fb"
COLOURS = {"i": IMAGE, "t": TEXT, "s": STATE, "a": ANSWER}
WIDTH, TOP, ROW = 1500, 90, 172
COLUMNS = (16, 206, 566, 806, 1056, 1296)
"""Left edges of the family's name and the five arrows [px]."""


@dataclass(frozen=True)
class Sizes:
    """What one size of a family makes of a frame.

    Attributes:
        frame: height and width after resizing [px].
        patch: edge of a patch [px].
        merge: patches along the side of a token.
        tower: width of the tower's features; 0 without a tower.
        width: of the language model.
        images: rows and columns of parts of the frame that the tower reads on their own, or None.
    """

    frame: tuple[int, int]
    patch: int
    merge: int
    tower: int
    width: int
    images: tuple[int, int] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.frame[0] // self.patch, self.frame[1] // self.patch

    @property
    def patches(self) -> int:
        """Patches of the frame, of its parts and of the whole."""
        rows, columns = self.grid
        whole = 0 if self.images is None else rows * columns // (self.images[0] * self.images[1])
        return rows * columns + whole

    @property
    def tokens(self) -> int:
        return self.patches // self.merge**2

    @property
    def seen(self) -> str:
        """Shape of the patches as the tower, or without one the language model, gets them."""
        return f"(B, {self.patches}, {self.tower})"


@dataclass(frozen=True)
class Drawn:
    """A row of the picture.

    Attributes:
        name: of the published model.
        parts: its tower and language model.
        published: sizes for FRAME.
        nano: sizes of a new model.
        pixels: what a frame becomes, in lines.
        connector: its layers.
        sequence: a letter for each of a few tokens: image, text, state, answer.
        rule: of the language model's layers.
        together: letters of tokens that see each other in both directions.
        positions: "1-D", "from 1" or "M-RoPE".
        actions: which rows are actions.
    """

    name: str
    parts: tuple[str, str]
    published: Sizes
    nano: Sizes
    pixels: tuple[str, ...]
    connector: tuple[str, str]
    sequence: str
    rule: MaskRule
    together: str
    positions: str
    actions: tuple[str, ...]


def rows() -> list[Drawn]:
    """Return what is drawn. Sizes of published models are those of their config.json."""
    window = 4  # as few as are drawn
    return [
        Drawn(
            "OpenVLA 7B", ("DINOv2 and SigLIP", "Llama 2, 32 layers"),
            Sizes((224, 224), 14, 1, 1024 + 1152, 4096), _openvla(), ("squeezed to a square,", "two towers"),
            ("3 linear layers", "GELU between them"), "tiiiisttaa", MaskRule(), "", "1-D",
            ("ids 31744 to 31999", "the last of Llama's words"),
        ),
        Drawn(
            "MiniVLA 0.5B", ("DINOv2 and SigLIP", "Qwen2.5, 24 layers"),
            Sizes((224, 224), 14, 1, 1024 + 1152, 896), _openvla(), ("squeezed to a square,", "two towers"),
            ("3 linear layers", "GELU between them"), "tiiiisttaa", MaskRule(), "", "1-D",
            ("ids 151665 to 151920", "added behind Qwen's words"),
        ),
        Drawn(
            "PaliGemma 3B", ("SigLIP, 27 layers", "Gemma, 18 layers"),
            Sizes((224, 224), 14, 1, 1152, 2048), _nano(PALIGEMMA), ("squeezed to a square", ""),
            ("1 linear layer", ""), "iiiisttaa", MaskRule(), "ist", "from 1",
            ("the 256 rarest of", "257,152 words"),
        ),
        Drawn(
            "Qwen2-VL 7B", ("own ViT, 32 layers", "Qwen2, 28 layers"),
            Sizes(within(Budget(28, 56**2, 1280 * 28**2), *FRAME), 14, 2, 1280, 3584), _nano(QWEN2_VL),
            ("nearest multiples", "of 28 px"), ("norm, 2 x 2 become 1,", "2 linear layers, GELU"), "tiiiitstaa",
            MaskRule(), "", "M-RoPE", ("the 256 rarest of", "152,064 words"),
        ),
        Drawn(
            "Gemma 4 31B", ("own ViT, 27 layers", "Gemma 4, 60 layers"),
            Sizes(filling(Budget(48, 0, 280 * 48**2), *FRAME), 16, 3, 1152, 5376), _nano(GEMMA4),
            ("scaled up to a budget", "of 280 tokens"), ("mean of 3 x 3, norm,", "1 linear layer"), "tiiiitstaa",
            MaskRule(window, blocks_in_full=False, window_cuts_blocks=True), "i", "1-D",
            ("the 256 rarest of", "262,144 words, cap 30"),
        ),
        Drawn(
            "Gemma 4 12B unified", ("no tower", "Gemma 4, 48 layers"),
            Sizes(filling(Budget(48, 0, 280 * 48**2), *FRAME), 48, 1, 48 * 48 * 3, 3840), _nano(GEMMA4_UNIFIED),
            ("scaled up to a budget", "of 280 tokens"), ("norm, linear, norm, + x, y,", "norms, 1 linear layer"),
            "tiiiitstaa", MaskRule(window), "i", "1-D", ("the 256 rarest of", "262,144 words"),
        ),
        Drawn(
            "SmolVLM2 500M", ("SigLIP, 12 layers", "Llama, 32 layers"),
            Sizes(multiples(*scaled(*FRAME, 2048), 512), 16, 4, 768, 960, (3, 4)), _nano(SMOLVLM),
            ("cut into parts of 512 px,", "and the whole", "(thin: tokens)"),
            ("4 x 4 behind one another,", "1 linear layer"),
            "tiiiitstaa", MaskRule(), "", "1-D", ("the 256 rarest of", "49,280 words"),
        ),
    ]  # fmt: skip


def _openvla() -> Sizes:
    """Return the sizes of a new OpenVLA or MiniVLA: two towers side by side."""
    return Sizes(NANO_FRAME, 14, 1, 2 * NANO.tower_dim, NANO.llm_dim)


def _nano(family: TransformersFamily) -> Sizes:
    """Read the sizes of a new model from the configuration that the family makes for it."""
    tokenizer = train_tokenizer(["lift the red cube"], NANO.text_vocab, family.control_tokens)
    made = family.nano(NANO, NANO.text_vocab + ACTION_BINS, tokenizer)
    vision: dict[str, Any] = made["vision_config"]
    merge = vision.get("spatial_merge_size") or vision.get("pooling_kernel_size") or made.get("scale_factor") or 1
    patch, tower = vision["patch_size"], vision.get("embed_dim") or vision.get("hidden_size")
    if tower is None:  # no tower: a token's pixels are its features
        patch, merge = patch * merge, 1
        tower = patch * patch * 3
    return Sizes(NANO_FRAME, patch, merge, tower, made["text_config"]["hidden_size"])


def draw(file: Path) -> None:
    """Write the picture."""
    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    drawn = rows()
    height = TOP + ROW * len(drawn) + 40
    figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=140, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    axes.axis("off")
    _headings(axes)
    for index, row in enumerate(drawn):
        _row(axes, row, TOP + ROW * index)
    _legend(axes, height - 22)
    drawn_in_full = io.BytesIO()
    figure.savefig(drawn_in_full)
    PIL.Image.open(drawn_in_full).convert("RGB").quantize(64).save(file, optimize=True)


def _headings(axes: Axes) -> None:
    titles = (
        "",
        "1  pixels to patches",
        "2  connector",
        "3  sequence and mask",
        "4  positions",
        "5  tokens to actions",
    )
    notes = (
        f"a camera of {FRAME[0]} x {FRAME[1]}", "thin: patches, thick: tokens", "patches to the language model",
        "rows see the filled columns", "of the tokens at the left", "7 tokens, 256 rows allowed",
    )  # fmt: skip
    for x, title, note in zip(COLUMNS, titles, notes, strict=True):
        _text(axes, x, 34, title, 15, INK, bold=True)
        _text(axes, x, 58, note, 11, SOFT)
    _text(axes, COLUMNS[0], 34, "family", 15, INK, bold=True)


def _row(axes: Axes, row: Drawn, top: float) -> None:
    axes.add_patch(Rectangle((6, top - 10), WIDTH - 12, ROW - 10, facecolor=BOX, edgecolor="none"))
    x = COLUMNS
    _text(axes, x[0], top + 18, row.name, 14, INK, bold=True)
    for line, part in enumerate(row.parts):
        _text(axes, x[0], top + 44 + 19 * line, part, 11, SOFT)
    _text(axes, x[0], top + 108, "published", 11, INK)
    _text(axes, x[0], top + 128, "nano", 11, ANSWER)
    _pixels(axes, row, x[1], top)
    _connector(axes, row, x[2], top)
    _mask(axes, row, x[3], top)
    _positions(axes, row, x[4], top)
    _actions(axes, row, x[5], top)


def _pixels(axes: Axes, row: Drawn, x: float, top: float) -> None:
    """Draw the resized frame, at one scale for all, with its patches and tokens."""
    p = row.published
    scale = min(76 / p.frame[0], 104 / p.frame[1])
    high, wide = (side * scale for side in p.frame)
    fine = p.grid if max(p.grid) < 64 else (p.grid[0] // p.merge, p.grid[1] // p.merge)
    copies = 2 if "two towers" in row.pixels else 1
    for copy in reversed(range(copies)):
        left, upper = x + 7 * copy, top + 4 + 7 * copy
        axes.add_patch(Rectangle((left, upper), wide, high, facecolor="white", edgecolor="none", zorder=2))
        _lines(axes, left, upper, wide, high, fine, IMAGE, 0.25)
        cells = p.images or (p.grid[0] // p.merge, p.grid[1] // p.merge)
        _lines(axes, left, upper, wide, high, cells, IMAGE, 0.7 if p.merge > 1 or p.images else 0.3)
    if p.images:
        part = high / p.images[0]
        axes.add_patch(
            Rectangle((x + wide + 8, top + 4), part, part, facecolor="white", edgecolor=IMAGE, linewidth=0.7)
        )
        side = p.grid[0] // p.images[0] // p.merge
        _lines(axes, x + wide + 8, top + 4, part, part, (side, side), IMAGE, 0.25)
    for line, text in enumerate(row.pixels):
        _text(axes, x + 150, top + 16 + 18 * line, text, 11, SOFT)
    grids = [
        f"{h} x {w} px, {r} x {c} patches" for h, w, r, c in ((*s.frame, *s.grid) for s in (row.published, row.nano))
    ]
    _text(axes, x, top + 108, f"{grids[0]}   {row.published.seen}", 11, INK)
    _text(axes, x, top + 128, f"{grids[1]}   {row.nano.seen}", 11, ANSWER)


def _connector(axes: Axes, row: Drawn, x: float, top: float) -> None:
    """Draw the patches that become a token."""
    merge, side = row.published.merge, 34.0
    _lines(axes, x, top + 8, side, side, (merge, merge), IMAGE, 0.8)
    axes.add_patch(Rectangle((x, top + 8), side, side, facecolor=IMAGE, alpha=0.2, edgecolor="none"))
    arrow = FancyArrowPatch(
        (x + side + 6, top + 25), (x + side + 34, top + 25), color=SOFT, arrowstyle="-|>", mutation_scale=10
    )
    axes.add_patch(arrow)
    axes.add_patch(Rectangle((x + side + 42, top + 16), 18, 18, facecolor=IMAGE, edgecolor="none"))
    for line, text in enumerate(row.connector):
        _text(axes, x, top + 62 + 17 * line, text, 11, SOFT)
    _text(axes, x, top + 108, f"(B, {row.published.tokens}, {row.published.width})", 11, INK)
    _text(axes, x, top + 128, f"(B, {row.nano.tokens}, {row.nano.width})", 11, ANSWER)


def _mask(axes: Axes, row: Drawn, x: float, top: float) -> None:
    """Draw the masks of full and sliding layers over a few tokens."""
    count, cell = len(row.sequence), 8.2
    blocks = torch.tensor([[int(kind in row.together) for kind in row.sequence if kind != "a"]])
    masks = row.rule.visible(count, None, blocks, torch.device("cpu"))
    for number, (kind, mask) in enumerate(masks.items()):
        left, upper = x + 14 + number * (cell * count + 26), top + 12
        for index, letter in enumerate(row.sequence):
            axes.add_patch(
                Rectangle((left + cell * index, upper - 11), cell - 1, 8, facecolor=COLOURS[letter], edgecolor="none")
            )
            axes.add_patch(
                Rectangle((left - 11, upper + cell * index), 8, cell - 1, facecolor=COLOURS[letter], edgecolor="none")
            )
        for query in range(count):
            for key in range(count):
                sees = bool(mask[0, 0, query, key])
                both = sees and key > query
                colour = IMAGE if both else INK if sees else "white"
                axes.add_patch(
                    Rectangle(
                        (left + cell * key, upper + cell * query),
                        cell - 1,
                        cell - 1,
                        facecolor=colour,
                        edgecolor="none",
                    )
                )
        label = {FULL: "full layers", SLIDING: "sliding, window 4"}[kind] if len(masks) > 1 else _said(row)
        _text(axes, left - 11, upper + cell * count + 12, label, 10.5, SOFT)
    _text(axes, x + 3, top + 126, f"{row.published.tokens} image tokens", 10.5, INK)
    _text(axes, x + 3, top + 141, f"{row.nano.tokens} image tokens", 10.5, ANSWER)


def _said(row: Drawn) -> str:
    return "prompt both ways, answer causal" if row.together else "causal"


def _positions(axes: Axes, row: Drawn, x: float, top: float) -> None:
    """Draw the positions of the same tokens."""
    count, cell = len(row.sequence), 21.0
    if row.positions == "M-RoPE":
        numbers = mrope(count, [ImageSpan(row.sequence.index("i"), 2, 2)]).tolist()
        labels = ["t", "h", "w"]
    else:
        first = int(row.positions == "from 1")
        numbers, labels = [list(range(first, first + count))], [""]
    for index, letter in enumerate(row.sequence):
        axes.add_patch(
            Rectangle((x + cell * index, top + 14), cell - 2, 16, facecolor=COLOURS[letter], edgecolor="none")
        )
        for line, axis in enumerate(numbers):
            _text(axes, x + cell * index + cell / 2 - 1, top + 46 + 19 * line, str(axis[index]), 11, INK, centre=True)
    for line, label in enumerate(labels):
        _text(axes, x - 14, top + 46 + 19 * line, label, 11, SOFT)
    said = {
        "1-D": "one axis, from 0",
        "from 1": "one axis, from 1",
        "M-RoPE": "time, height, width of a 2 x 2 image",
    }[row.positions]
    _text(axes, x, top + 108, said, 11, SOFT)


def _actions(axes: Axes, row: Drawn, x: float, top: float) -> None:
    """Draw the vocabulary as a bar with the rows of the actions."""
    added = "added" in row.actions[1]
    axes.add_patch(Rectangle((x, top + 8), 150, 14, facecolor=TEXT, edgecolor="none"))
    begin = x + 150 if added else x + 126
    axes.add_patch(Rectangle((begin, top + 8), 24, 14, facecolor=ANSWER, edgecolor="none"))
    for line, text in enumerate(row.actions):
        _text(axes, x, top + 44 + 18 * line, text, 11, INK)
    first = NANO.text_vocab
    _text(axes, x, top + 128, f"rows {first} to {first + ACTION_BINS - 1}", 11, ANSWER)


def _legend(axes: Axes, y: float) -> None:
    x = float(COLUMNS[0])
    for colour, name in ((IMAGE, "image"), (TEXT, "text"), (STATE, "arm's state, if it is read"), (ANSWER, "answer")):
        axes.add_patch(Rectangle((x, y - 9), 12, 12, facecolor=colour, edgecolor="none"))
        _text(axes, x + 18, y + 1, name, 11, SOFT)
        x += 46 + 7.4 * len(name)
    _text(
        axes,
        x,
        y + 1,
        "masks: blue cells see later tokens of their image or prompt; each sequence is drawn with an image of 4 tokens",
        11,
        SOFT,
    )


def _lines(
    axes: Axes, x: float, y: float, wide: float, high: float, grid: Sequence[int], colour: str, width: float
) -> None:
    """Draw a rectangle with rows and columns."""
    rows, columns = grid
    for row in range(rows + 1):
        axes.plot([x, x + wide], [y + high * row / rows] * 2, color=colour, linewidth=width, zorder=3)
    for column in range(columns + 1):
        axes.plot([x + wide * column / columns] * 2, [y, y + high], color=colour, linewidth=width, zorder=3)


def _text(
    axes: Axes, x: float, y: float, text: str, size: float, colour: str, bold: bool = False, centre: bool = False
) -> None:
    weight = "bold" if bold else "normal"
    place = "center" if centre else "left"
    axes.text(x, y, text, fontsize=size * 0.72, color=colour, weight=weight, ha=place, va="center")


if __name__ == "__main__":
    draw(Path(__file__).resolve().parent / "pictures" / "families.png")
