"""Fine-tune: demonstrations into a LeRobot dataset, and a small vision-language-action policy that learns from them.

    .venv/bin/python examples/finetune.py data/example

For a real policy: `vla record --env lift --out data/lift`, then `vla finetune --data data/lift --policy FOLDER`.
"""

import sys
from pathlib import Path

from write_policy import ToTheMark
from write_world import RailWorld

from vla_robot.data.demonstration import DemonstrationBuilder
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.recipe.finetune import Architecture, DemosFinetuneRecipe
from vla_robot.train.finetune import Trained, finetune

TINY = Architecture(
    image_size=28, tower_dim=24, tower_depth=2, tower_heads=2, llm_dim=32, llm_layers=2, llm_heads=2, llm_ff_dim=48,
    text_vocab=320, max_positions=96,
)  # fmt: skip


def record(folder: Path, episodes: int) -> None:
    """The scripted policy of write_policy.py shows how; what it wants is the label."""
    world, policy = RailWorld(), ToTheMark()
    with LeRobotWriter(folder) as writer:
        for seed in range(episodes):
            builder, seen, over = DemonstrationBuilder(), world.reset(seed), False
            while not over:
                action = policy.act([seen])[0].actions[0]
                result = world.step(action)
                builder.add(seen, action, result)
                seen, over = result.observation, result.terminated or result.truncated
            writer.write(builder.finish(world.embodiment, seed, "to_the_mark"))


def main(folder: Path, episodes: int = 20, steps: int = 200) -> Trained:
    record(folder / "demonstrations", episodes)
    recipe = DemosFinetuneRecipe(
        data=(folder / "demonstrations",), architecture=TINY, dataset_name="rail", steps=steps, batch_size=16,
        warmup_steps=min(20, steps - 1), evaluate_every=steps, held_out=0.2,
    )  # fmt: skip
    trained = finetune(recipe, folder / "run", on_progress=lambda progress: None)
    print(f"{trained.policy} after {trained.steps} steps: {trained.metrics}")
    return trained


if __name__ == "__main__":
    main(Path(sys.argv[1]))
