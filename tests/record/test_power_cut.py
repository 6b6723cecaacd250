"""Tests that files which are written once, such as caches, are whole after a power cut, or missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.errors import DataError
from vla_robot.data.formats.rlds.index import FOLDER
from vla_robot.data.pipeline.mixture import member_at, open_table_of
from vla_robot.data.questions import QuestionWriter, read_questions

SAMPLE = Path(__file__).parents[1] / "golden" / "rlds_samples" / "bridge_orig"


def written(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_index_of_shards_and_the_table_of_steps_survive(
    tmp_path: Path, power_cut: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(SAMPLE, tmp_path / "bridge_orig")
    before = written(tmp_path)
    open_table_of(member_at(str(tmp_path / "bridge_orig"), None), False, None, lambda *_: None)
    made = {name: content for name, content in written(tmp_path).items() if name not in before}
    assert {Path(name).suffix for name in made} >= {".npy", ".json"} and len(made) >= 6, sorted(made)
    tables = {name: content for name, content in made.items() if name.startswith("cache/")}
    shards = tmp_path / "bridge_orig" / "1.0.0"  # its shards existed before and count as synced
    indexes = {name: content for name, content in written(shards).items() if name.startswith(f"{FOLDER}/")}
    assert tables and indexes
    require_survival(tables, power_cut.survivors(tmp_path))
    require_survival(indexes, power_cut.survivors(shards))


def require_survival(files: dict[str, bytes], survivors: dict[str, bytes]) -> None:
    assert {name for name, content in files.items() if survivors.get(name) != content} == set()


def test_questions_survive_and_their_folder_has_one_writer(tmp_path: Path, power_cut: Any) -> None:
    folder = tmp_path / "questions"
    with QuestionWriter(folder) as writer:
        with pytest.raises(DataError, match=rf"questions is being written by process {os.getpid()} "):
            QuestionWriter(folder)
        images, asked = {"front": np.zeros((8, 8, 3), np.uint8)}, [("which cube?", "red")]
        writer.write("train", 1, images, asked)
        writer.write("held_out", 2, images, asked)
        assert not {name for name in power_cut.survivors(tmp_path) if name.endswith(".jsonl")}
    survivors = power_cut.survivors(tmp_path)
    survivors.pop("questions/.lock")  # no process holds the lock any more
    assert survivors == written(tmp_path)
    assert len(read_questions(folder)["train"]) == 1
