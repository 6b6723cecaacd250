"""Matrices of eight and of four bits: less memory, the same inference, clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from vla_robot.core.errors import MissingDependencyError, PolicyError, RecipeError
from vla_robot.core.host import optional
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.vla.engine.fp8 import EightBitMatrix
from vla_robot.policy.vla.engine.int4 import BLOCK, FourBitMatrix
from vla_robot.policy.vla.engine.quantise import PACKAGES, require_quantiser
from vla_robot.policy.vla.loading import Loading
from vla_robot.recipe import parse
from vla_robot.recipe.policy import OpenVLARecipe, PolicyRecipe

NANO = Path(__file__).resolve().parents[4] / "policies" / "openvla_nano"
FRAME = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
IDS = np.array([1, 300, 301, 302])


def way(how: str) -> Any:
    missing = not optional.installed(PACKAGES[how])
    return pytest.param(how, marks=pytest.mark.skipif(missing, reason="needs the extra [quantise]"))


WAYS = ["fp8", way("int8"), way("int4")]
SHARE_OF_FP32 = {
    ("fp8", "float32"): 0.45,
    ("fp8", "bfloat16"): 0.38,
    ("int8", "float32"): 0.45,
    ("int8", "bfloat16"): 0.38,
    ("int4", "float32"): 0.3,
    ("int4", "bfloat16"): 0.25,
}
FAR = {"fp8": 0.15, "int8": 0.05, "int4": 0.35}
"""Relative distance of features from the plain ones'."""


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small_weights_take_less_memory_and_features_stay_near(dtype: str, how: str) -> None:
    plain, small = load(NANO, Loading(dtype=dtype)), load(NANO, Loading(dtype=dtype, quantise=how))
    assert small.memory_bytes() < load(NANO).memory_bytes() * SHARE_OF_FP32[how, dtype]
    frames = [[FRAME] * plain.model.config.num_images]
    state = np.zeros((1, plain.model.config.proprio_dim or 0))
    assert small.generate_tokens(frames, [IDS], state).shape == (1, 7)
    pixels = torch.from_numpy(plain.preprocessor(frames)).to(plain.model.projector.fc1.weight.dtype)
    with torch.inference_mode():
        mine, other = (p.model.projector(p.model.vision_backbone(pixels)).float() for p in (small, plain))
    assert 0 < float((mine - other).norm() / other.norm()) < FAR[how]


@pytest.mark.parametrize("how", WAYS)
def test_small_weights_change_actions_little(how: str) -> None:
    plain, small = load(NANO), load(NANO, Loading(quantise=how))
    rng, rows = np.random.default_rng(0), 48
    coarse = rng.integers(0, 256, (rows, plain.model.config.num_images, 7, 7, 3), dtype=np.uint8)
    frames = [[image.repeat(16, axis=0).repeat(16, axis=1) for image in row] for row in coarse]
    state = rng.uniform(-1.0, 1.0, (rows, plain.model.config.proprio_dim or 0))
    mine, other = (p.generate_tokens(frames, [IDS] * rows, state) for p in (small, plain))
    l1 = np.abs(np.subtract(*(plain.codec.values[plain.codec.rows(said)] for said in (mine, other))))  # of a range of 2
    assert len(np.unique(other)) > 10  # else equality would say nothing
    assert np.mean(mine != other) < {"fp8": 0.2, "int8": 0.1, "int4": 0.3}[how]
    assert l1.mean() < {"fp8": 0.1, "int8": 0.02, "int4": 0.2}[how]


@pytest.mark.skipif(not optional.installed("bitsandbytes"), reason="needs the extra [quantise]")
@pytest.mark.parametrize("columns", [128, 96, 4304])
def test_a_product_with_four_bits_is_that_with_the_levels_they_stand_for(columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((48, columns), (3, 5, columns), (48,))
    plain, x, bias = (torch.randn(*shape, generator=generator) for shape in shapes)
    small = FourBitMatrix.pack(plain)
    codes = torch.stack([small.packed.flatten() >> 4, small.packed.flatten() & 15], dim=1).flatten().long()
    levels = (small.state.code[codes].view(-1, BLOCK) * small.scales[:, None]).view(plain.shape)  # NF4 by hand
    torch.testing.assert_close(small.plain(), levels)
    torch.testing.assert_close(linear(x, small, bias), linear(x, levels, bias))
    assert (small.shape, small.dtype, small.packed.nbytes) == (plain.shape, plain.dtype, plain.numel() // 2)
    assert 0 < float((levels - plain).norm() / plain.norm()) < 0.12


@pytest.mark.skipif(not optional.installed("bitsandbytes"), reason="needs the extra [quantise]")
def test_four_bits_refuse_what_only_plain_numbers_can_do() -> None:
    small = FourBitMatrix.pack(torch.ones(8, 64))
    with pytest.raises(NotImplementedError, match="four bits"):
        _ = small + 1.0


def test_a_product_in_fp8_is_that_of_the_rounded_numbers() -> None:
    """The formula, number by number in float64; a row of zeros stays zeros."""
    generator = torch.Generator().manual_seed(0)
    plain, x, bias = (torch.randn(*shape, generator=generator) for shape in ((48, 96), (3, 5, 96), (48,)))
    x[1, 2] = 0
    x[0, 0] *= 1e4
    small = EightBitMatrix.pack(plain)
    assert (small.shape, small.dtype, small.numbers.dtype) == (plain.shape, plain.dtype, torch.float8_e4m3fn)
    assert small.numbers.nbytes == plain.numel()

    def rounded(rows: torch.Tensor) -> torch.Tensor:
        scale = rows.abs().amax(dim=-1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
        return (rows / scale).nan_to_num().to(torch.float8_e4m3fn).double() * scale.double()

    by_hand = rounded(x) @ rounded(plain).T + bias.double()
    torch.testing.assert_close(linear(x, small, bias).double(), by_hand, rtol=1e-5, atol=1e-4)
    assert (linear(x, small)[1, 2] == 0).all()
    exact = linear(x, plain, bias)
    assert 0 < float((linear(x, small, bias) - exact).norm() / exact.norm()) < 0.05


@pytest.mark.skipif(not optional.installed("torchao"), reason="needs the extra [quantise]")
def test_weights_in_fp8_are_torchaos() -> None:
    from torchao.quantization import Float8WeightOnlyConfig, quantize_  # pyright: ignore[reportMissingImports]

    plain = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    holder = torch.nn.Linear(96, 64, bias=False)
    holder.weight = torch.nn.Parameter(plain.clone(), requires_grad=False)
    quantize_(holder, Float8WeightOnlyConfig())
    small = EightBitMatrix.pack(plain)
    mine, theirs = small.numbers.float() * small.scales, holder.weight.dequantize()
    torch.testing.assert_close(mine, theirs, rtol=0.07, atol=1e-6)  # a neighbouring number at most
    assert float((mine == theirs).float().mean()) > 0.5


def test_fp8_is_refused_on_a_gpu_that_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(PolicyError, match=r"capability 8.9 or more .*cuda:0 has 8.0. Choose 'int8'"):
        require_quantiser("fp8", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    require_quantiser("fp8", cuda)
    with pytest.raises(PolicyError, match="not on 'mps'"):
        require_quantiser("fp8", torch.device("mps"))


def test_memory_of_plain_weights_is_that_of_the_parameters(tiny_folder: Path) -> None:
    policy = load(tiny_folder)
    parameters = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    assert parameters <= policy.memory_bytes() < 1.05 * parameters


def test_an_unknown_way_is_refused_with_those_there_are(tiny_folder: Path) -> None:
    with pytest.raises(PolicyError, match=r"int7.*fp8.*int8"):
        load(tiny_folder, Loading(quantise="int7"))


@pytest.mark.parametrize("how", PACKAGES)
def test_without_its_package_the_extra_is_named(how: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "installed", lambda distribution: None)
    with pytest.raises(MissingDependencyError, match=rf"{PACKAGES[how]}.*vla_robot\[quantise\]"):
        load(tiny_folder, Loading(quantise=how))


def test_a_recipe_quantises_what_says_tokens_and_is_not_compiled() -> None:
    folder = Path("somewhere")
    assert OpenVLARecipe(checkpoint=folder, quantise="int8").quantise == "int8"
    with pytest.raises(RecipeError, match="quantise"):
        OpenVLARecipe(checkpoint=folder, quantise="int8", compiled=True)
    with pytest.raises(RecipeError, match="quantise: this key is for kind 'openvla' or 'vla', not for 'hold'"):
        parse(PolicyRecipe, {"kind": "hold", "quantise": "int8"}, "mine")
