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
    """Record demonstrations as a LeRobot v3 dataset. The same command continues an interrupted one."""

    out: Annotated[Path, option("FOLDER")]
    """the dataset's folder; an existing dataset is continued"""
    recipe: Annotated[str | None, tyro.conf.Positional, option("[RECIPE]")] = None
    """a dataset recipe, by name or path; without one, give --env"""
    env: Annotated[str | None, option("ENV")] = None
    """the world, by name or path; a suite, e.g. libero_object, stands for its tasks, one after the other"""
    source: Annotated[str, option("POLICY|DEVICE")] = "expert"
    """who gives the label: a policy by name or path, or you: "keyboard", "browser", "gamepad", "spacemouse", a leader
    arm of envs/teleoperators/"""
    episodes: Annotated[int, option("N")] = 50
    """number of episodes; of a suite, in each task"""
    seed: Annotated[int, option("SEED")] = 0
    """the first episode's seed; the k-th has SEED + k"""
    driver: Annotated[str | None, option("POLICY")] = None
    """policy that moves the arm while --source gives the label (DAgger); by default --source itself"""
    device: Annotated[str | None, option("DEVICE")] = None
    """where the weights of --source and --driver are, instead of their recipes' devices:
    auto (a GPU if there is one), cpu, cuda, cuda:1 or mps"""
    noise: Annotated[float, option("0..1")] = 0.0
    """strength of the driver's noise, so that demonstrations show how to correct mistakes (DART)"""
    image_size: Annotated[int | None, option("PIXELS")] = None
    """edge of the stored frames in pixels: the policy's input size; by default the world's"""
    save: Annotated[Literal["all", "success"] | None, option("{all,success}")] = None
    """which episodes are stored; by default all with --driver, successful ones without"""
    workers: Annotated[int | None, option("N")] = None
    """number of processes, each with its own world; by default one per core, at most 4"""
    robot: Annotated[str | None, option("ADDRESS")] = None
    """if you drive: record from the robot behind this bridge instead of --env"""
    key: Annotated[str | None, option("NAME")] = None
    """which of this computer's keys to use for the bridge; only needed if there are several"""
    arm: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """release the bridge's e-stop first"""
    page: Annotated[PageArgs, tyro.conf.arg(name="")] = field(default_factory=PageArgs)
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""
