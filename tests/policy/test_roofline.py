"""Which card fits: the floors are those worked out by hand for OpenVLA's 7B, and every family is counted."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks.gpu import phases
from vla_robot.cli.main import main
from vla_robot.core.errors import RecipeError
from vla_robot.policy.cards import CARDS, card_named
from vla_robot.policy.families import FAMILIES, family_of
from vla_robot.policy.outline import Outline, oft_outline, outline_of
from vla_robot.policy.roofline import PRECISIONS, floor_of

from .vlm.tiny_vlms import create

BF16, FP8 = PRECISIONS[:2]
OPENVLA_7B = {
    "model_type": "openvla",
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "timm_override_act_layers": [None, None],
    "image_sizes": [224, 224],
    "image_resize_strategy": "resize-naive",
    "text_config": {
        "model_type": "llama", "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 2048,
    },
}  # fmt: skip
TEXT = 14
"""Tokens beside the 256 patches: 270 in all."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """openvla-7b's config.json, and nothing else."""
    folder = tmp_path_factory.mktemp("openvla-7b")
    (folder / "config.json").write_text(json.dumps(OPENVLA_7B))
    return folder


@pytest.fixture(scope="module")
def outline(folder: Path) -> Outline:
    return outline_of(family_of(folder).on_meta(folder))


@pytest.mark.parametrize(
    ("card", "precision", "batch", "towers", "prefill", "correction", "act", "six"),
    [
        ("h100", BF16, 1, 0.46, 4.5, 4.4, 13.7, 31.1),
        ("h100", BF16, 4, 1.9, 18.0, 4.5, 29.1, 46.7),
        ("h100", BF16, 16, 7.4, 72, 5.1, 90.4, 109),
        ("h100", BF16, 64, 29.6, 288, 7.4, 336, 359),
        ("4090", BF16, 1, 2.2, 21.8, 13.0, 50.2, 102),
    ],
)
def test_the_floors_are_those_worked_out_by_hand(
    outline: Outline, card: str, precision: object, batch: int,
    towers: float, prefill: float, correction: float, act: float, six: float,
) -> None:  # fmt: skip
    floor = floor_of(outline, CARDS[card], BF16, batch, TEXT)
    found = (floor.towers_ms, floor.prefill_ms, floor.correction_ms, floor.act_ms(2), floor.act_ms(6))
    assert found == pytest.approx((towers, prefill, correction, act, six), rel=0.03)


def test_fp8_and_parallel_decoding_too(outline: Outline, folder: Path) -> None:
    assert floor_of(outline, CARDS["h100"], FP8, 1, TEXT).act_ms(2) == pytest.approx(7.1, rel=0.05)
    for cameras, ms in ((1, 5.9), (2, 10.7)):  # OpenVLA-OFT: 8 actions of 7 numbers in one pass
        oft = floor_of(oft_outline(folder, cameras, 8), CARDS["h100"], BF16, 1, TEXT + 56, answer=1)
        assert oft.act_ms(0) == pytest.approx(ms, rel=0.06)


PUBLISHED_MS = {
    "OpenVLA, a step per token (prefill and six steps), 4090": (1e3 / 4.4, 1e3 / 6.02),
    "OpenVLA-OFT, two cameras, H100": (90.0,),
    "OpenVLA, a step per token, A100": (1e3 / 4.2,),
    "OpenVLA-OFT, one camera, A100": (8e3 / 109.7,),
}
"""Case -> times that others published; docs/gpu.md names them."""


def test_published_times_are_above_the_floor_by_the_factors_of_the_page(outline: Outline, folder: Path) -> None:
    """No program is faster than the floor, and none of these is slower than nine times of it."""

    def oft(cameras: int, card: str) -> float:
        return floor_of(oft_outline(folder, cameras, 8), CARDS[card], BF16, 1, TEXT + 56, answer=1).act_ms(0)

    floors = {case: floor_of(outline, CARDS["a100"], BF16, 1, TEXT).act_ms(6) for case in PUBLISHED_MS}
    floors["OpenVLA, a step per token (prefill and six steps), 4090"] = floor_of(
        outline, CARDS["4090"], BF16, 1, TEXT
    ).act_ms(6)
    floors |= {
        "OpenVLA-OFT, two cameras, H100": oft(2, "h100"),
        "OpenVLA-OFT, one camera, A100": oft(1, "a100"),
    }
    page = (Path(__file__).resolve().parents[2] / "docs" / "gpu.md").read_text()
    for case, published in PUBLISHED_MS.items():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {case} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert float(cells[1].removesuffix(" ms")) == pytest.approx(floors[case], rel=0.05), case
        factors = [ms / floors[case] for ms in published]
        assert [float(factor) for factor in cells[3].split(", ")] == pytest.approx(factors, rel=0.04), case
        assert all(1 < factor < 9 for factor in factors)


def test_every_family_is_counted_from_its_config_alone_as_with_its_weights(tmp_path: Path) -> None:
    for name in FAMILIES:
        if name == "openvla":
            continue
        whole = create(tmp_path / name, name, use_state=False)
        (tmp_path / f"{name}_bare").mkdir()
        (tmp_path / f"{name}_bare" / "config.json").write_text((whole / "config.json").read_text())
        family = family_of(whole)
        bare, real = outline_of(family.on_meta(tmp_path / f"{name}_bare")), family.load(whole).model
        assert bare.matrices + bare.other == sum(p.numel() for p in real.parameters()), name
        assert bare.layers > 0 and bare.projector > 0 and bare.image_tokens > 0, name


def test_the_command_says_what_fits(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    assert main(["plan", str(folder), "--device", "h100", "a100", "--rate", "100", "--json", str(file)]) == 0
    assert "7.50 billion weights" in capsys.readouterr().out
    rows = {(row["card"], row["precision"]): row for row in json.loads(file.read_text())["plan"]}
    assert set(rows) == {("h100", p.name) for p in PRECISIONS} | {("a100", n) for n in ("bf16", "int8", "int4")}
    assert rows["h100", "bf16"]["fits"] and rows["h100", "bf16"]["batch_for_rate"] == 2
    assert rows["h100", "int4"]["memory_gb"] < 0.5 * rows["h100", "bf16"]["memory_gb"]
    with pytest.raises(RecipeError, match="unknown card 'h10'"):
        card_named("h10")
    assert main(["plan", "hold"]) == 2


def test_a_training_is_planned_by_kind_from_the_config_alone(folder: Path, tmp_path: Path) -> None:
    """LoRA of the 7B: 3 % of the weights are learned; of all weights each has a gradient, two moments and a mean."""
    file = tmp_path / "plan.json"
    assert main(["plan", str(folder), "--device", "h100", "--training", "lora", "projector", "--json", str(file)]) == 0
    lora, projector = json.loads(file.read_text())["plan"]
    assert list(lora["parts"]) == ["weights", "gradients", "moments", "average", "activations", "casts"]
    learned = lora["parts"]["gradients"]
    assert lora["parts"]["moments"] == 2 * learned and 0.3e9 < learned < 0.6e9
    assert 15e9 < lora["parts"]["weights"] < 17e9  # frozen matrices are kept in bf16
    assert lora["fits"] == ["h100"] and 36 < lora["needed_gb"] < 50
    assert projector["parts"]["gradients"] < learned
    assert main(["plan", str(folder), "--training", "some"]) == 2
    assert main(["plan", "hold", "--training", "lora"]) == 2


def test_the_check_of_a_card_uses_the_plans_arithmetic(outline: Outline) -> None:
    """`vla bench gpu` tells the floor of the card that it measured; of the same rates, it is that of `vla plan`."""
    h100 = CARDS["h100"]
    bench = phases.Bench(torch.device("cpu"), True, Path("none"), h100.bf16_tflops * 1e12, h100.bandwidth_gb_s * 1e9)
    bench.large = mock.Mock(outline=outline)
    floor = floor_of(outline, h100, BF16, 4, phases.TEXT_TOKENS, phases.TOKENS)
    assert phases._floor_ms(bench, 4, passes=2) == pytest.approx(floor.act_ms(2))
