"""Processes that share a model hold and read their own rows only, and any number of them reads what another wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vla_robot.train.parallel.parts import FIRST_ROWS, StoredState, part_name

QUICK, OTHERS = ("openvla_nano", "gemma4_nano"), ("paligemma_nano", "qwen_vl_nano")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What processes of `shared_ranks.py` found."""
    return found_with(QUICK, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def found_of_others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return found_with(OTHERS, tmp_path_factory.mktemp("ranks"))


def found_with(policies: Sequence[str], out: Path) -> dict[str, Any]:
    folders = [str(Path(__file__).resolve().parents[3] / "policies" / name) for name in policies]
    command = [sys.executable, str(Path(__file__).with_name("shared_ranks.py"))]
    done = subprocess.run(
        [*command, str(out), *folders],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_each_process_writes_a_file_and_none_of_them_is_a_pickle(found: dict[str, Any]) -> None:
    assert found["files"] == ["state-00000-of-00002.safetensors", "state-00001-of-00002.safetensors"]


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_any_number_of_processes_reads_its_own_rows_and_no_others(found: dict[str, Any], readers: int) -> None:
    each = found[f"read by {readers}"]
    assert len(each) == readers
    assert all(one["equal"] for one in each)
    assert [one["bytes_read"] for one in each] == [one["own"] for one in each]


@pytest.mark.parametrize("policy", QUICK)
def test_each_process_reads_its_own_rows_of_a_policy_and_no_others(found: dict[str, Any], policy: str) -> None:
    require_own_rows(*found[policy])


@pytest.mark.slow
@pytest.mark.parametrize("policy", OTHERS)
def test_so_it_is_with_the_other_families(found_of_others: dict[str, Any], policy: str) -> None:
    require_own_rows(*found_of_others[policy])


def require_own_rows(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first["equal"], "the parts together are the policy"
    for each in (first, second):
        assert each["numbers_read"] == each["here"] + each["buffers_of_files"]
    assert first["here"] + second["here"] == first["whole"]
    assert abs(first["here"] - second["here"]) < 0.1 * first["whole"]
    assert first["buffers"] == second["buffers"] == first["alone"]


def test_a_missing_file_is_no_smaller_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 2)}, tmp_path / part_name(0, 2), metadata={FIRST_ROWS: '{"a": 0}'})
    with StoredState(tmp_path) as stored, pytest.raises(ValueError, match="has 3 rows, expected 5; is a file missing"):
        stored.read_into("a", torch.zeros(5, 2))


@pytest.mark.parametrize("first", ['"x"', "-1", "true", "1.5"])
def test_a_header_that_is_wrong_is_refused(tmp_path: Path, first: str) -> None:
    save_file({"a": torch.zeros(3, 2)}, tmp_path / part_name(0, 1), metadata={FIRST_ROWS: f'{{"a": {first}}}'})
    with pytest.raises(ValueError, match="the first row of 'a'"):
        StoredState(tmp_path)
