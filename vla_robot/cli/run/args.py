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
    """Run closed-loop episodes: a policy drives a world. Options override the launch file."""

    launch: Annotated[str | None, tyro.conf.Positional, option("[LAUNCH]")] = None
    """a launch file, by name or path; without one, give --env and --policy"""
    env: Annotated[str | None, option("ENV")] = None
    """the world, by name or path"""
    policy: Annotated[str | None, option("POLICY")] = None
    """policy by name, by path, or at the address of a `vla serve`, e.g. tcp://127.0.0.1:5580"""
    robot: Annotated[str | None, option("ADDRESS")] = None
    """drive the robot behind this bridge instead of a world here, e.g. tcp://127.0.0.1:5570; see `vla bridge`"""
    key: Annotated[str | None, option("NAME")] = None
    """which of this computer's keys to use for the bridge or policy server; only needed if there are several"""
    lockstep: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """with --robot, if it is simulated: it waits for each action, as if inference took no time"""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """with --robot: show the policy's actions; refused unless the bridge runs dry too, so that nothing moves"""
    arm: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """with --robot: release its e-stop first; before that, find the cause and check that no person is near"""
    episodes: Annotated[int | None, option("N")] = None
    """number of episodes"""
    seed: Annotated[int | None, option("SEED")] = None
    """the first episode's seed; the k-th has SEED + k"""
    rows: Annotated[int | None, option("N")] = None
    """execution horizon: how many actions of an answer are used before the policy is asked again"""
    device: Annotated[str | None, option("DEVICE")] = None
    """where the policy's weights are, instead of its recipe's device:
    auto (a GPU if there is one), cpu, cuda, cuda:1 or mps"""
    real_time: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """keep the world's control rate on the wall clock; a simulation otherwise steps as fast as it can"""
    takeover: Annotated[str | None, option("DEVICE")] = None
    """a person may take over while the policy drives: by browser (a page), keyboard, spacemouse or gamepad"""
    ask_when_unsure: Annotated[str | None, option("SIGNAL:THRESHOLD")] = None
    """with --takeover: hand over to the person when a signal's mean of 5 steps is above this: entropy:2.96 [nats], for
    policies that answer in tokens, or chunk_gap:0.15 (share of the range), for those that are asked again before a
    chunk is used up; `vla eval` tells a threshold that few successful episodes exceed"""
    page: Annotated[PageArgs, tyro.conf.arg(name="")] = field(default_factory=PageArgs)
    record: Annotated[Path | None, option("FOLDER")] = None
    """add every episode to this LeRobot v3 dataset, with a mark on each step driven by a person"""
    save: Annotated[Literal["all", "success"] | None, option("{all,success}")] = None
    """with --record: which episodes are stored, by default all"""
    videos: Annotated[Literal["all", "none"], option("{all,none}")] = "all"
    """whether the report has a video of each episode; "none" needs no extra [report]"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""
    out: Annotated[Path | None, option("FOLDER")] = None
    """folder of the report, videos and episodes; by default a new one, runs/<time>"""
