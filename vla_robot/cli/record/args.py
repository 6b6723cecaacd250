"""The options of `vla record`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.web_options import PageArgs


@dataclass(frozen=True)
class RecordArgs:
    """Demonstrations, as a LeRobot v3 dataset. The same command again goes on where an interrupted one ended."""

    out: Annotated[Path, option("FOLDER")]
    """the dataset's folder; one that exists is continued"""
    recipe: Annotated[str | None, tyro.conf.Positional, option("[RECIPE]")] = None
    """a dataset recipe, by name or path; without one, give --env"""
    env: Annotated[str | None, option("ENV")] = None
    """the world, by name or path"""
    source: Annotated[str, option("POLICY|DEVICE")] = "expert"
    """what gives the label: a policy by name or path, or you: "keyboard", "browser", "gamepad", "spacemouse", a leader
    arm of envs/teleoperators/"""
    episodes: Annotated[int, option("N")] = 50
    """how many episodes"""
    seed: Annotated[int, option("SEED")] = 0
    """the first episode's seed; the k-th has SEED + k"""
    driver: Annotated[str | None, option("POLICY")] = None
    """what moves the arm while --source says what should have been done (DAgger); by default --source itself"""
    noise: Annotated[float, option("0..1")] = 0.0
    """how strongly the driver is disturbed, so that demonstrations show how to get out of mistakes (DART)"""
    image_size: Annotated[int | None, option("PIXELS")] = None
    """store frames at this size: the input size of the policy that will learn; by default the world's"""
    save: Annotated[Literal["all", "success"] | None, option("{all,success}")] = None
    """which episodes are stored; by default all with --driver, successful ones without"""
    workers: Annotated[int | None, option("N")] = None
    """processes, each with its own world; by default one per core, at most 4"""
    robot: Annotated[str | None, option("ADDRESS")] = None
    """where you drive: record from the robot behind this bridge, in the place of --env"""
    key: Annotated[str | None, option("NAME")] = None
    """which of this computer's keys to show the bridge; only needed when there are several"""
    arm: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """release the bridge's e-stop first"""
    page: Annotated[PageArgs, tyro.conf.arg(name="")] = field(default_factory=PageArgs)
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file, for machines"""
