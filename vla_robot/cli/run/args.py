"""The options of `vla run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.web_options import PageArgs


@dataclass(frozen=True)
class RunArgs:
    """Closed-loop episodes: a policy drives a world. An option beats the launch file."""

    launch: Annotated[str | None, tyro.conf.Positional, option("[LAUNCH]")] = None
    """a launch file, by name or path; without one, give --env and --policy"""
    env: Annotated[str | None, option("ENV")] = None
    """the world, by name or path"""
    policy: Annotated[str | None, option("POLICY")] = None
    """policy by name, by path, or at the address of a `vla serve`, e.g. tcp://127.0.0.1:5580"""
    robot: Annotated[str | None, option("ADDRESS")] = None
    """drive the robot behind this bridge instead of a world here, e.g. tcp://127.0.0.1:5570; see `vla bridge`"""
    key: Annotated[str | None, option("NAME")] = None
    """which of this computer's keys to prove to the bridge or policy server; only needed when there are several"""
    lockstep: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """with --robot, where it is simulated: it waits for each action, as if thinking took no time"""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """with --robot: show what the policy wants; refused unless the bridge runs dry too, so that nothing moves"""
    arm: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """with --robot: release its e-stop first; look why it stopped, and that no person is near, before you say so"""
    episodes: Annotated[int | None, option("N")] = None
    """how many episodes"""
    seed: Annotated[int | None, option("SEED")] = None
    """the first episode's seed; the k-th has SEED + k"""
    real_time: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """keep the world's control rate on the wall clock; a simulation otherwise steps as fast as it can"""
    takeover: Annotated[str | None, option("DEVICE")] = None
    """a person may take over while the policy drives: by browser (a page), keyboard, spacemouse or gamepad"""
    page: Annotated[PageArgs, tyro.conf.arg(name="")] = field(default_factory=PageArgs)
    record: Annotated[Path | None, option("FOLDER")] = None
    """add every episode to this LeRobot v3 dataset, with a mark on each step that a person drove"""
    save: Annotated[Literal["all", "success"] | None, option("{all,success}")] = None
    """with --record: which episodes are stored, by default all"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file, for machines"""
    out: Annotated[Path | None, option("FOLDER")] = None
    """where the report, videos and episodes go; by default a new folder runs/<time>"""
