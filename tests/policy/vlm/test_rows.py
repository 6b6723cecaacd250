"""A process that reads rows of a folder's weights gets those of the loaded model, and buffers without a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.families import NEW_MODELS, family_of
from vla_robot.recipe.finetune import HeadRecipe

from .tiny_vlms import create

META = torch.device("meta")


def assert_rows_are_those_of_the_loaded_model(folder: Path) -> None:
    """Of the library's own loading, for transformers' families."""
    family = family_of(folder)
    loaded = family.load_model(folder, torch.float32, torch.device("cpu"))
    rows, empty = family.rows(folder), family.load_model(folder, torch.float32, META)
    for name, tensor in loaded.named_parameters():
        half = (len(tensor) + 1) // 2
        assert torch.equal(torch.cat([rows[name](0, half), rows[name](half, len(tensor))]), tensor), name
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert [name for name, _ in empty.named_parameters()] == [name for name, _ in loaded.named_parameters()], "tied"
    for name, buffer in loaded.named_buffers():
        if name in rows:
            assert torch.equal(rows[name](0, len(buffer) if buffer.ndim else 1).to(buffer.dtype), buffer), name
        else:
            assert torch.equal(empty.get_buffer(name), buffer), name


@pytest.mark.parametrize("name", NEW_MODELS)
def test_rows_and_buffers_are_those_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    assert_rows_are_those_of_the_loaded_model(create(tmp_path, name, use_state=True))


@pytest.mark.parametrize("name", ["openvla", "paligemma"])
def test_a_head_is_read_too(name: str, tmp_path: Path) -> None:
    assert_rows_are_those_of_the_loaded_model(create(tmp_path, name, use_state=True, head=HeadRecipe("l1")))


@pytest.mark.parametrize("name", ["paligemma", "qwen2_vl"])
def test_files_with_the_names_of_the_librarys_modules_are_read_as_those_with_published_names(
    name: str, tmp_path: Path
) -> None:
    path = create(tmp_path, name, use_state=False) / "model.safetensors"
    tensors = load_file(path)
    family = family_of(tmp_path)
    loaded: Any = family.load_model(tmp_path, torch.float32, torch.device("cpu"))
    today = {key: value.contiguous() for key, value in loaded.vlm.named_parameters()}
    assert not today.keys() & tensors.keys(), "a new folder has the names of published ones"
    save_file(today, path, metadata={"format": "pt"})
    assert_rows_are_those_of_the_loaded_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors, last: tensors.pop(last), "1 missing"),
        (lambda tensors, last: tensors.update({last: tensors[last][:-1]}), "1 of another shape"),
        (lambda tensors, last: tensors.update(more=torch.zeros(2)), "1 unexpected"),
    ],
)
def test_weights_that_do_not_fit_are_told(change: Any, reason: str, tmp_path: Path) -> None:
    path = create(tmp_path, "qwen3_vl", use_state=False) / "model.safetensors"
    tensors = load_file(path)
    change(tensors, max(tensors, key=lambda name: tensors[name].ndim))
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=reason):
        family_of(tmp_path).rows(tmp_path)
