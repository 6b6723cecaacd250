"""Two processes train as one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vla_robot.core.errors import RecipeError
from vla_robot.learn.finetune import finetune
from vla_robot.learn.ranks import Ranks
from vla_robot.recipe import dump
from vla_robot.recipe.finetune import FinetuneRecipe

PROGRAM = """
import json, os, sys
from pathlib import Path
from vla_robot.learn.finetune import finetune
from vla_robot.recipe import read
from vla_robot.recipe.finetune import FinetuneRecipe

losses, out = [], Path(sys.argv[2])
watch = lambda p: losses.append(p.metrics["loss"]) if p.phase == "steps" else None
finetune(read(FinetuneRecipe, Path(sys.argv[1])), out, watch)
(out / f"losses_{os.environ['RANK']}.json").write_text(json.dumps(losses))
"""


def together(recipe: FinetuneRecipe, out: Path, count: int) -> None:
    """Run it in `count` processes, connected as torchrun would."""
    out.mkdir()
    (out.parent / "run.toml").write_text(dump(recipe))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(out.parent / "run.toml"), str(out)]
    running = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    try:
        assert [process.wait(timeout=400) for process in running] == [0] * count
    finally:
        for process in running:
            process.kill()


@pytest.mark.timeout(450)
def test_two_processes_lose_as_much_as_one_in_each_of_twenty_steps(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    recipe = replace(recipe, steps=20, micro_batch=2, shift_px=2)
    one: list[float] = []
    finetune(recipe, tmp_path / "one", lambda p: one.append(p.metrics["loss"]) if p.phase == "steps" else None)
    together(recipe, tmp_path / "two", 2)
    assert json.loads((tmp_path / "two" / "losses_0.json").read_text()) == pytest.approx(one, abs=1e-5)
    assert json.loads((tmp_path / "two" / "losses_1.json").read_text()) == []
    alone, both = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("one", "two"))
    for name, weight in alone.items():
        torch.testing.assert_close(both[name], weight, atol=2e-4, rtol=1e-3)


def test_a_batch_that_cannot_be_shared_equally_is_refused() -> None:
    assert Ranks(count=4).share(8) == 2
    with pytest.raises(RecipeError, match="a step has 8 frames, which 3 processes cannot share equally"):
        Ranks(count=3).share(8)


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.here() == Ranks(0, 1, 0)
    assert Ranks().any(True, torch.device("cpu"))
    assert not Ranks().any(False, torch.device("cpu"))
