"""Run one episode: a world, a policy, and what came of it.

    .venv/bin/python examples/run_episode.py
    .venv/bin/python examples/run_episode.py tabletop expert

`vla run --env lift --policy openvla_nano` does the same with the world in a process of its own, and writes a report.
"""

import sys

from vla_robot.cli.build import build_policy
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.events import Event, StepDone
from vla_robot.loop.results import EpisodeResult
from vla_robot.recipe import read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.safety.limits import RangeGuard
from vla_robot.world.kinds import build_world


def show(event: Event) -> None:
    """Subscribers see each event of the loop: recorders and viewers are nothing else."""
    if isinstance(event, StepDone):
        print(f"step {event.observation.step}: {event.result.executed}")


def main(env: str = "lift", policy: str = "openvla_nano", seed: int = 10000) -> EpisodeResult:
    recipe, source = read(EnvRecipe, env), find_policy(policy)
    world = build_world(recipe, privileged=source.is_privileged)  # an expert sees the simulator's truth
    try:
        driver = build_policy(source, recipe, world.embodiment)  # refused here if it was made for another arm
        result = run_episode(world, driver, seed, guard=RangeGuard(world.embodiment.action), subscribers=[show])
    finally:
        world.close()
    print(f"{result.outcome} after {result.steps} steps")
    return result


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(env=sys.argv[1], policy=sys.argv[2])
    else:
        main()
