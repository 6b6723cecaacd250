"""`vla run --takeover` and `--record`: a person who may take over, and a dataset of the episodes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vla_robot.cli.common.terminal import say
from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.ports import Policy
from vla_robot.evaluate.runner import OnEpisode, noop
from vla_robot.loop.events import Subscriber
from vla_robot.loop.failure_detector import CHUNK_GAP, ENTROPY, SIGNALS, Threshold

if TYPE_CHECKING:
    from vla_robot.cli.run.args import RunArgs
    from vla_robot.core.embodiment import Embodiment
    from vla_robot.core.messages import Observation
    from vla_robot.core.ports import Teleoperator
    from vla_robot.loop.results import RunSummary
    from vla_robot.record.corrections import LogStore

_EXAMPLES = ("entropy:2.96", "chunk_gap:0.15")

_REASONS = {
    ENTROPY: "Policies that answer in tokens tell it; others have a chunk gap.",
    CHUNK_GAP: "Its chunks were used up before it was asked again: --rows N, below their length, lets them overlap.",
}
"""Signal -> why a policy may have none."""


def validate_options(args: RunArgs) -> None:
    """Raise RecipeError for options that have no meaning here."""
    if args.save is not None and args.record is None:
        raise RecipeError("--save selects the episodes that --record stores: add --record FOLDER, or leave it out.")
    if args.ask_when_unsure is not None and args.takeover is None:
        raise RecipeError("--ask-when-unsure hands over to a person: add --takeover DEVICE, or leave it out.")
    if args.ask_when_unsure is not None:
        threshold_in(args.ask_when_unsure)
    args.page.validate_options(args.takeover, "--takeover browser opens one")


def threshold_in(text: str) -> Threshold:
    """Return the threshold that `--ask-when-unsure` names. Raises RecipeError if it names none."""
    name, colon, number = text.partition(":")
    if not colon:
        raise RecipeError(f"--ask-when-unsure is '{text}': name the signal, too, as in {' or '.join(_EXAMPLES)}.")
    if name not in SIGNALS:
        raise RecipeError(unknown("signal of --ask-when-unsure", name, SIGNALS))
    signal = SIGNALS[name]
    try:
        score = float(number)
    except ValueError:
        score = math.nan
    if not 0 < score < math.inf or score >= signal.most:
        below = "" if math.isinf(signal.most) else f" and below {signal.most:g}"
        raise RecipeError(f"--ask-when-unsure is '{text}'; a threshold above 0{below} {signal.unit} is needed.")
    return Threshold(signal, score)


def print_if_never_asked(args: RunArgs, summary: RunSummary) -> None:
    """Say that a policy had no such signal in any episode, and therefore never asked the person."""
    if args.ask_when_unsure is None or not summary.episodes:
        return
    signal = threshold_in(args.ask_when_unsure).signal
    if not any(signal.of_episode(episode) for episode in summary.episodes):
        say(f"The policy told no {signal.title}, so that it never asked the person. {_REASONS[signal]}")


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
    """Return the policy, with a person beside it if --takeover is given, and further subscribers of the loop's events.

    Args:
        args: the command line.
        policy: the policy, which drives until a person takes over.
        embodiment: the arm's embodiment.
        instruction: the task.
        row_by_row: see `Takeover`.
        look: see `Takeover`.
        on_estop: called if the person presses e-stop.

    Raises:
        RecipeError: there is no such device.
        ContractError: it cannot drive this arm.
        VlaError: it is absent or not permitted.
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
        Takeover(
            policy,
            teleop,
            embodiment,
            row_by_row=row_by_row,
            look=look,
            on_estop=on_estop,
            unsure_above=None if args.ask_when_unsure is None else threshold_in(args.ask_when_unsure),
        ) as driver,
    ):
        say(_how(teleop), flush=True)
        yield driver, [driver]


@contextlib.contextmanager
def dataset(args: RunArgs, embodiment: Embodiment, policy_name: str) -> Iterator[OnEpisode]:
    """Return the handler of finished episodes: `--record` adds them to a LeRobot dataset.

    Raises:
        DataError: the folder holds something else, or cannot be written.
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
    """Return what the person must know before taking over."""
    from vla_robot.web.browser_teleop import BrowserTeleop

    keys = "T or a moved device takes over; G gives back; Escape is the e-stop."
    if isinstance(teleop, BrowserTeleop):
        return f"  {teleop.url}   drives: keep it to yourself\n  {teleop.watcher_url}   shows the same\n  There: {keys}"
    ends = "Y ends an episode as a success, N as a failure. Keys that move the tool: docs/teleoperate.md"
    return f"  In this terminal: {keys}\n  {ends}"


def _stored(args: RunArgs, store: LogStore) -> str:
    left_out = f", {store.rested} steps without motion left out" if store.rested else ""
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
