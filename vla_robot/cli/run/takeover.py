"""What `vla run --takeover` and `--record` add to a run: a person beside the policy, and a dataset of what was done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vla_robot.cli.common.terminal import say
from vla_robot.core.errors import RecipeError
from vla_robot.core.ports import Policy
from vla_robot.evaluate.runner import OnEpisode, noop
from vla_robot.loop.events import Subscriber

if TYPE_CHECKING:
    from vla_robot.cli.run.args import RunArgs
    from vla_robot.core.embodiment import Embodiment
    from vla_robot.core.messages import Observation
    from vla_robot.core.ports import Teleoperator
    from vla_robot.record.corrections import LogStore


def validate_options(args: RunArgs) -> None:
    """Raise RecipeError for options that say nothing here."""
    if args.save is not None and args.record is None:
        raise RecipeError("--save says which episodes --record stores: add --record FOLDER, or leave it out.")
    args.page.validate_options(args.takeover, "--takeover browser opens one")


@contextlib.contextmanager
def shared_control(
    args: RunArgs,
    policy: Policy,
    embodiment: Embodiment,
    instruction: str,
    *,
    row_by_row: bool,
    look: Callable[[], Observation | None] = lambda: None,
    on_estop: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Policy, list[Subscriber]]]:
    """The policy, with a person beside it where one is asked for, and further subscribers of the loop's events.

    Args:
        args: of the command line.
        policy: drives until a person takes over.
        embodiment: of the arm.
        instruction: of the task.
        row_by_row: see `Takeover`.
        look: see `Takeover`.
        on_estop: called when the person presses it.

    Raises:
        RecipeError: there is no such device.
        ContractError: it cannot drive this arm.
        VlaError: it is not there, or not permitted.
    """
    if args.takeover is None:
        yield policy, []
        return
    from vla_robot.cli.record.teleop_devices import open_named_teleoperator
    from vla_robot.loop.takeover import Takeover

    with (
        contextlib.closing(
            open_named_teleoperator(args.takeover, embodiment, instruction, page=args.page, draws=False)
        ) as teleop,
        Takeover(policy, teleop, embodiment, row_by_row=row_by_row, look=look, on_estop=on_estop) as driver,
    ):
        say(_how(teleop), flush=True)
        yield driver, [driver]


@contextlib.contextmanager
def dataset(args: RunArgs, embodiment: Embodiment, policy_name: str) -> Iterator[OnEpisode]:
    """What is done with each finished episode: `--record` adds it to a LeRobot dataset.

    Raises:
        DataError: the folder holds something else, or the disk refuses.
        MissingDependencyError: the extra [data] is not installed.
    """
    if args.record is None:
        yield noop
        return
    from vla_robot.data.formats.lerobot.writer import LeRobotWriter
    from vla_robot.record.corrections import LogStore

    with LeRobotWriter(args.record) as writer:
        store = LogStore(writer, embodiment, policy_name, args.save or "all")
        try:
            yield lambda result, log: store.add(log)
        finally:
            say(_stored(args, store), flush=True)


def _how(teleop: Teleoperator) -> str:
    """What the person must know before they can take over."""
    from vla_robot.web.browser_teleop import BrowserTeleop

    keys = "T, or hands that begin to move, take over; G gives back; Escape is the e-stop."
    if isinstance(teleop, BrowserTeleop):
        return f"  {teleop.url}   drives: keep it to yourself\n  {teleop.watcher_url}   shows the same\n  There: {keys}"
    ends = "Y ends an episode as a success, N as none. What moves the tool: docs/teleoperate.md"
    return f"  In this terminal: {keys}\n  {ends}"


def _stored(args: RunArgs, store: LogStore) -> str:
    left_out = f", {store.rested} steps left out in which the arm rested" if store.rested else ""
    gaps = ""
    if store.missing:
        gaps = (
            f"\n{store.missing} steps are missing: they were lost on the network, or their frames were. The dataset's "
            f"episodes end at such gaps, so that no window reaches across: {store.stored} episodes in the dataset."
        )
    return (
        f"\n{store.kept} episodes were added to {args.record}, {store.corrected} steps of them driven by a person"
        f"{left_out}.{gaps}\n"
        f"`vla data inspect {args.record}` shows them; name the folder with `vla finetune --data`."
    )
