"""A world in a process of its own comes up, tells why it cannot, and never outlives its user."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vla_robot.core.errors import RecipeError, WorldError
from vla_robot.serve.world.client import RemoteWorld
from vla_robot.serve.world.world_process import WorldProcess, connected, spawn_world

ToyCommand = Callable[[str], list[str]]
ACTION = np.array([0.02, 1.0])

linux_only = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits on a process by its pidfd")


def has_ended(pid: int, timeout_s: float = 120) -> bool:
    """Wait for a process that need not be a child of ours."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], timeout_s)[0])
    finally:
        os.close(handle)


def test_an_episode_runs_in_a_process_of_its_own(toy_command: ToyCommand) -> None:
    with connected(toy_command("toy")) as world:
        assert world.reset(2).state == [2.0]
        assert world.step(ACTION).observation.step == 1


def test_a_world_that_prints_while_it_is_built_confuses_nobody(toy_command: ToyCommand) -> None:
    with connected(toy_command("noisy")) as world:
        assert world.instruction == "gå rett frem"


def test_an_error_while_building_is_raised_here_as_it_was_there(toy_command: ToyCommand) -> None:
    with (
        pytest.raises(RecipeError, match=r"^unknown robosuite task 'Lifft'; did you mean 'Lift'\?$"),
        connected(toy_command("misspelt")),
    ):
        pass


def test_a_bug_while_building_shows_what_the_process_said_last(toy_command: ToyCommand) -> None:
    with (
        pytest.raises(
            WorldError, match=r"died while it started \(exit status 1\).*ZeroDivisionError: in the simulator"
        ),
        connected(toy_command("buggy")),
    ):
        pass


def test_a_world_that_is_not_ready_in_time_is_given_up(toy_command: ToyCommand) -> None:
    with (
        WorldProcess(toy_command("slow")) as process,
        pytest.raises(WorldError, match=r"not ready within 0\.1 s"),
    ):
        process.await_address(timeout_s=0.1)


def test_a_death_in_the_midst_of_a_step_is_told_with_the_last_words(toy_command: ToyCommand) -> None:
    with (
        pytest.raises(WorldError, match=r"died unexpectedly \(exit status 3\).*Segmentation fault, more or less"),
        connected(toy_command("dying")) as world,
    ):
        world.step(ACTION)


def test_a_world_killed_between_steps_is_told(toy_command: ToyCommand) -> None:
    with WorldProcess(toy_command("toy")) as process:
        process.await_address()
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(WorldError, match="killed by signal 9"):
            process.require_alive()


@linux_only
@pytest.mark.parametrize("build", ["toy", "stubborn", "slow"])
def test_no_process_is_left_behind(toy_command: ToyCommand, build: str) -> None:
    with pytest.raises(KeyboardInterrupt), WorldProcess(toy_command(build)) as process:
        if build != "slow":
            process.await_address()
        raise KeyboardInterrupt
    assert has_ended(process.pid, timeout_s=0)


def test_ctrl_c_in_the_terminal_does_not_reach_the_world(toy_command: ToyCommand) -> None:
    with WorldProcess(toy_command("toy")) as process:
        address = process.await_address()
        assert os.getpgid(process.pid) != os.getpgid(0)
        os.kill(process.pid, signal.SIGINT)
        with RemoteWorld(address, check_peer=process.require_alive) as world:
            assert world.reset(1).state == [1.0]


@linux_only
def test_sigterm_ends_the_world(toy_command: ToyCommand) -> None:
    with WorldProcess(toy_command("toy")) as process:
        process.await_address()
        os.kill(process.pid, signal.SIGTERM)
        assert has_ended(process.pid)


@linux_only
@pytest.mark.parametrize("build", ["toy", "stubborn", "slow"])
def test_the_world_ends_when_its_user_is_killed(toy_command: ToyCommand, build: str) -> None:
    script = (
        "import sys, threading; from vla_robot.serve.world.world_process import WorldProcess\n"
        "process = WorldProcess(sys.argv[2:])\n"
        "sys.argv[1] == 'slow' or process.await_address()\n"
        "print(process.pid, flush=True); threading.Event().wait()"
    )
    with subprocess.Popen([sys.executable, "-c", script, build, *toy_command(build)], stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        pid = int(user.stdout.readline())
        assert not has_ended(pid, timeout_s=0)
        user.kill()
    assert has_ended(pid)


def test_a_misspelt_recipe_is_told_before_a_process_starts() -> None:
    with pytest.raises(RecipeError, match="unknown env 'lifft'; did you mean 'lift'"), spawn_world("lifft"):
        pass


@pytest.mark.sim
def test_the_shipped_world_repeats_itself_behind_the_socket() -> None:
    with spawn_world("lift", privileged=True) as world:
        first = world.reset(7)
        action = np.array([0.01, 0.0, -0.02, 0.0, 0.0, 0.0, 1.0])
        assert world.embodiment.action.names[-1] == "gripper"
        moved = world.step(action).observation
        again = world.reset(7)
        assert first.privileged
        np.testing.assert_equal({**vars(first), "stamp_ns": 0}, {**vars(again), "stamp_ns": 0})
        np.testing.assert_equal({**vars(moved), "stamp_ns": 0}, {**vars(world.step(action).observation), "stamp_ns": 0})


@pytest.mark.sim
def test_a_task_that_robosuite_does_not_have_is_a_recipe_error_here(tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.toml"
    recipe.write_text('kind = "robosuite"\ntask = "Liftt"\ninstruction = "lift"\n')
    with pytest.raises(RecipeError, match="unknown robosuite task 'Liftt'; did you mean 'Lift'"), spawn_world(recipe):
        pass
