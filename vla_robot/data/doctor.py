"""Checks a dataset before training. Each finding says what was seen and what to do.

The checks read standard steps, which are those that a policy learns from, before normalisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.ports import EpisodeSource
from vla_robot.data.pipeline.steps import StepTable, is_absolute
from vla_robot.recipe.oxe import SourceRecipe

Verdict = Literal["problem", "note", "fine"]

NO_OP = 1e-4
"""Norm of an action below which a step is idle, as in the filtering of LIBERO's idle steps."""
MANY_NO_OPS = 0.02
OUTLIER_SPANS = 5.0
"""Distance from the middle of the 1 % to 99 % range, in half ranges, beyond which an action is an outlier."""
BUSY_GRIPPER = 0.2
"""Largest share of steps at which a gripper may switch between open and closed."""
LARGE_RATIO, SMALL_RATIO = 2.0, 0.5
"""Ratios of two datasets' ranges between which they count as equal; another unit gives ratios of ten or more."""
FROZEN = 0.02
JITTER = 0.5
"""Share of a period by which a step may come early or late."""
CAMERA_EPISODES = 20
"""Number of episodes whose frames are read and compared."""
RATE_TOLERANCE = 0.1
CAPTURE = "stamp_ns"
STAMPS: Mapping[str, float] = {"timestamp": 1.0, CAPTURE: 1e-9}
"""Field of a step's time -> its unit [s]: the nominal time of the dataset, and the capture time."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: name of the check, e.g. "no-ops".
        verdict: "problem" when it harms training, "note" when the user should know it, else "fine".
        text: what was seen.
        fix: what to do about it; empty when there is nothing to do.
    """

    check: str
    verdict: Verdict
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Patient:
    """A dataset under examination.

    Attributes:
        recipe: its recipe.
        parts: its splits.
        table: its standard steps.
    """

    recipe: SourceRecipe
    parts: Sequence[EpisodeSource]
    table: StepTable

    @property
    def motion(self) -> NDArray[np.float32]:
        """(N, R) the relative dimensions of all actions."""
        return self.table.actions[:, ~is_absolute(self.recipe)]

    @property
    def gripper(self) -> NDArray[np.float32] | None:
        """(N,) the gripper's action; None for an arm without one that is normalised like the rest."""
        return None if self.recipe.action_mask[-1] else np.asarray(self.table.actions[:, -1])

    @property
    def is_first(self) -> NDArray[np.bool_]:
        """(N,) whether the step is its episode's first."""
        first = np.zeros(len(self.table), dtype=bool)
        first[self.table.episodes["start"]] = True
        return first

    def where(self, row: int) -> str:
        """Return the episode and the step of a row of the table, in words."""
        number = int(np.searchsorted(self.table.episodes["start"], row, side="right")) - 1
        return f"episode {number}, step {row - int(self.table.episodes['start'][number])}"


def examine(patient: Patient, reference: Mapping[str, Any] | None = None) -> list[Finding]:
    """Run every check. Return the findings, problems first.

    Args:
        patient: the dataset.
        reference: a checkpoint's statistics of the dataset that it was trained on, to compare with.

    Raises:
        DataError: an episode is damaged.
    """
    found = [
        *no_ops(patient),
        *outliers(patient),
        *gripper(patient),
        *rate(patient),
        *frames(patient),
        *instructions(patient),
        *(() if reference is None else compare_statistics(patient.table.statistics, reference)),
    ]
    order: Sequence[Verdict] = ("problem", "note", "fine")
    return sorted(found, key=lambda finding: order.index(finding.verdict))


def no_ops(patient: Patient) -> Iterator[Finding]:
    """Check the share of idle steps; a policy that learns many of them may stop moving."""
    motion = patient.motion
    if motion.shape[1] == 0:
        yield Finding("no-ops", "note", "the actions are absolute positions, by which idle steps cannot be recognised")
        return
    still = np.linalg.norm(motion, axis=1) < NO_OP
    if (grip := patient.gripper) is not None:
        still &= np.diff(grip, prepend=grip[:1]) == 0
    share = float(still.mean())
    if share > MANY_NO_OPS:
        text = f"{share:.1%} of the steps do nothing (motion below {NO_OP:g}, gripper as before)"
        yield Finding("no-ops", "problem", text, "set skip_still = true in the dataset's recipe")
    else:
        yield Finding("no-ops", "fine", f"{share:.1%} of the steps do nothing")


def outliers(patient: Patient) -> Iterator[Finding]:
    """Check for actions far outside the range of nearly all others, and for dimensions that never change."""
    block, mask = patient.table.statistics["action"], np.array(patient.recipe.action_mask)
    low, high = np.array(block["q01"]), np.array(block["q99"])
    half = np.where(high > low, (high - low) / 2, np.inf)
    distance = np.abs(patient.table.actions - (low + high) / 2) / half
    distance[:, ~mask] = 0
    rows = np.flatnonzero(distance.max(axis=1) > OUTLIER_SPANS)
    if len(rows) == 0:
        yield Finding("outliers", "fine", f"no action is beyond {OUTLIER_SPANS:g} times the range of 98 % of them")
    else:
        worst = int(np.argmax(distance.max(axis=1)))
        dim = int(np.argmax(distance[worst]))
        value = float(patient.table.actions[worst, dim])
        yield Finding(
            "outliers",
            "problem",
            f"{len(rows)} actions are beyond {OUTLIER_SPANS:g} times the range of 98 % of them; the worst is "
            f"{value:.4g} in dimension {dim} ({patient.where(worst)}), where 98 % lie in {low[dim]:.4g} to "
            f"{high[dim]:.4g}",
            "look at that episode and remove it if the arm jumped; quantile statistics are hardly affected by the rest",
        )
    never = [str(d) for d in range(len(low)) if block["min"][d] == block["max"][d]]
    if never:
        text = f"dimension {', '.join(never)} of the action never changes"
        yield Finding("outliers", "note", text, "check the recipe's action, if the arm did move in it")


def gripper(patient: Patient) -> Iterator[Finding]:
    """Check range, sign and switching rate of the gripper's action: 1 is open, 0 is closed."""
    grip = patient.gripper
    if grip is None:
        return
    low, high = float(grip.min()), float(grip.max())
    if low < -0.01 or high > 1.01:
        fix = "-1 open to 1 closed" if low < -0.01 else "another scale"
        yield Finding(
            "gripper", "problem", f"its action goes from {low:.3g} to {high:.3g} instead of 0 (closed) to 1 (open)",
            f"that looks like {fix}: in the recipe's action write '| clip | invert' behind it, or '| clip'",
        )  # fmt: skip
        return
    if low == high:
        yield Finding("gripper", "note", f"its action is always {low:.3g}", "check the recipe's action, if it did move")
        return
    is_open = grip > 0.5
    begins_open = float(is_open[patient.table.episodes["start"]].mean())
    if begins_open < 0.5:
        yield Finding(
            "gripper", "problem", f"it begins closed in {1 - begins_open:.0%} of the episodes",
            "if the arm begins with an open gripper, the sign is wrong: write '| invert' behind it in the recipe",
        )  # fmt: skip
    flips = (np.diff(is_open, prepend=is_open[:1]) & ~patient.is_first).sum() / len(grip)
    if flips > BUSY_GRIPPER:
        text = f"it flips between open and closed in {flips:.0%} of the steps"
        yield Finding("gripper", "problem", text, "write '| binarise' behind it in the recipe, or filter the recording")
    elif begins_open >= 0.5:
        per_episode = flips * len(grip) / len(patient.table.episodes)
        yield Finding("gripper", "fine", f"0 to 1, begins open, {per_episode:.1f} flips an episode")


def rate(patient: Patient) -> Iterator[Finding]:
    """Check that steps are evenly spaced, and at the rate that the dataset gives."""
    part = patient.parts[0]
    names = [name for name in STAMPS if name in part.fields]
    if not names or len(part) == 0:
        text = "the steps have no time stamps" + ("" if part.rate_hz is None else f"; its rate is {part.rate_hz:g} Hz")
        yield Finding("rate", "note", text, "train and act at one rate: find out at which rate it was recorded")
    for name in names:
        yield from _rate_by(part, name)


def _rate_by(part: EpisodeSource, name: str) -> Iterator[Finding]:
    chosen = range(0, len(part), max(1, len(part) // CAMERA_EPISODES))
    stamps = [part.episode(i, [name]).numbers(name).ravel().astype(np.float64) * STAMPS[name] for i in chosen]
    periods = np.concatenate([np.diff(times) for times in stamps] or [np.empty(0)])
    if len(periods) == 0:
        return
    period = float(np.median(periods))
    if period <= 0:
        yield Finding("rate", "problem", f"'{name}' does not advance", "record the capture time of each step")
        return
    uneven = float((np.abs(periods - period) > JITTER * period).mean())
    text = f"{1 / period:.3g} Hz by '{name}', {uneven:.1%} of the steps more than half a period early or late"
    differs = part.rate_hz is not None and abs(part.rate_hz * period - 1) > RATE_TOLERANCE
    if name == CAPTURE and (differs or uneven > FROZEN):
        fix = "ignore this for a simulator, which does not run in real time; on an arm, steps were late or dropped"
        yield Finding("rate", "note", text, fix)
    elif differs:
        yield Finding("rate", "problem", f"{text}, but the dataset says {part.rate_hz:g} Hz", "correct fps in its info")
    elif uneven > FROZEN:
        yield Finding("rate", "problem", text, "steps were dropped or came late: leave those episodes out")
    else:
        yield Finding("rate", "fine", text)


def frames(patient: Patient) -> Iterator[Finding]:
    """Check for frames that repeat while the arm moves: the camera was too slow, or frames were dropped."""
    motion = patient.motion
    moves = np.linalg.norm(motion, axis=1) >= NO_OP if motion.shape[1] else np.ones(len(patient.table), dtype=bool)
    episodes = patient.table.episodes
    chosen = episodes[:: max(1, len(episodes) // CAMERA_EPISODES)]
    for role, camera in patient.recipe.camera_fields.items():
        repeated = total = 0
        for episode in chosen:
            part, first, length = patient.parts[episode["part"]], int(episode["first"]), int(episode["length"])
            pixels = part.episode(int(episode["index"]), [camera]).frames(camera)
            files = [pixels.encoded(first + step) for step in range(length)]
            same = np.array([a == b for a, b in pairwise(files)], dtype=bool)
            moving = moves[int(episode["start"]) : int(episode["start"]) + length - 1]
            repeated, total = repeated + int((same & moving).sum()), total + int(moving.sum())
        share = repeated / max(total, 1)
        text = f"camera '{role}': {share:.1%} of the frames repeat the one before although the arm moves"
        if share > FROZEN:
            yield Finding("frames", "problem", text, "the camera is slower than the control: leave repeated steps out")
        else:
            yield Finding("frames", "fine", text)


def instructions(patient: Patient) -> Iterator[Finding]:
    """Check that steps have instructions, and that a policy can tell them apart."""
    counts = np.bincount(patient.table.text_of, minlength=len(patient.table.texts))
    blank = [i for i, text in enumerate(patient.table.texts) if not text.strip()]
    if blank:
        share = counts[blank].sum() / len(patient.table)
        text = f"{share:.1%} of the steps have no instruction, and are not learned from"
        yield Finding("instructions", "problem", text, "add them, or name the field that has them in the recipe")
    texts = [text for text in patient.table.texts if text.strip()]
    stops = [text for text in texts if text.rstrip().endswith(".")]
    if stops:
        text = (
            f"{len(stops)} of {len(texts)} end with a full stop, e.g. '{stops[0]}', which can change a policy's actions"
        )
        yield Finding("instructions", "note", text, "ask the policy in the same words, full stop included")
    folded = {" ".join(text.lower().rstrip(". ").split()) for text in texts}
    if len(folded) < len(texts):
        text = f"{len(texts) - len(folded)} of {len(texts)} differ from another only in capitals, spaces or full stops"
        yield Finding("instructions", "note", text, "write each task in one way")
    short = [text for text in folded if len(text.split()) < 2]
    if short:
        text = f"{len(short)} have fewer than two words, e.g. '{short[0]}'"
        yield Finding("instructions", "note", text, "name the action and the object")
    if len(folded) == 1:
        text = f"all episodes have the same instruction: '{texts[0]}'"
        yield Finding("instructions", "note", text, "a policy will ignore it; add other tasks if it should not")
    elif folded and not blank:
        yield Finding("instructions", "fine", f"{len(folded)} tasks")


def compare_statistics(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare the dataset's range of actions with that of a checkpoint's dataset.

    Args:
        ours: block of dataset_statistics.json of the dataset.
        theirs: the same of the checkpoint.
    """
    mine, other = ours["action"], theirs["action"]
    if len(mine["q01"]) != len(other["q01"]):
        text = f"the checkpoint's actions have {len(other['q01'])} dimensions, the dataset's {len(mine['q01'])}"
        yield Finding("statistics", "problem", text, "choose a checkpoint of this kind of action")
        return
    spans = [np.array(block["q99"]) - np.array(block["q01"]) for block in (mine, other)]
    ratio = spans[0] / np.where(spans[1] == 0, np.nan, spans[1])
    wrong = [
        d for d in np.flatnonzero((ratio > LARGE_RATIO) | (ratio < SMALL_RATIO)) if mine.get("mask", [True] * 99)[d]
    ]
    if not wrong:
        yield Finding("statistics", "fine", "the actions' range is that of the checkpoint, within a factor of two")
        return
    seen = ", ".join(f"dimension {d}: {ratio[d]:.3g} times" for d in wrong)
    yield Finding(
        "statistics", "problem", f"the range of actions differs from the checkpoint's ({seen})",
        "another unit or rate? Fine-tuning uses the dataset's own statistics; acting zero-shot would move too far or "
        "too little",
    )  # fmt: skip
