"""Measures a policy's answers to held-out questions, and its boxes by their overlap with the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.progress import Bar
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.core.errors import DataError, PolicyError
from vla_robot.core.host.provenance import row
from vla_robot.core.language.boxes import asks_for_boxes, boxes_of, overlap
from vla_robot.core.ports import AnswersQuestions
from vla_robot.core.stats import wilson_interval
from vla_robot.data.questions import Question, read_questions


@dataclass(frozen=True)
class Judged:
    """An answer to a held-out question.

    Attributes:
        question: the question, with its true answer.
        said: the policy's answer.
        overlap: of boxes, the overlap with the true one in [0, 1], 0 for an answer that is no box; None for words.
        is_box: of boxes, whether the answer is a list of boxes.
    """

    question: Question
    said: str
    overlap: float | None = None
    is_box: bool = False

    @property
    def is_right(self) -> bool:
        """Whether the answer is the true one, word for word."""
        return self.said == self.question.answer


def judged(question: Question, said: str) -> Judged:
    """Judge an answer. Raises DataError if the true answer of a question for boxes is no box."""
    if not asks_for_boxes(question.question):
        return Judged(question, said)
    try:
        (true,) = boxes_of(question.answer)
    except (PolicyError, ValueError) as error:
        raise DataError(f"scene {question.scene}: '{question.answer}' is not one box, which is needed here.") from error
    try:
        found = boxes_of(said, question.question)
    except PolicyError:
        return Judged(question, said, 0.0)
    return Judged(question, said, overlap(found[0], true) if found else 0.0, is_box=bool(found))


def measure(policy: AnswersQuestions, folder: Path, max_tokens: int, json: Path | None) -> None:
    """Ask all held-out questions of a folder, and report.

    Raises:
        DataError: the folder is damaged, or a true answer is no box where a box is asked for.
        ContractError: a camera of the policy is missing.
    """
    questions = read_questions(folder)["held_out"]
    answers: list[Judged] = []
    with Bar("questions", Terminal()) as bar:
        for number, question in enumerate(questions, 1):
            answers.append(judged(question, policy.answer(question.frames(), question.question, max_tokens)))
            bar.update(number, len(questions))
    words = [each for each in answers if each.overlap is None]
    boxes = [each for each in answers if each.overlap is not None]
    rows = [*_of_words(words), *_of_boxes(boxes)]
    if json is not None:
        said = [{"scene": a.question.scene, "question": a.question.question, "said": a.said} for a in answers]
        write_json(json, "ask", rows=rows, answers=said)


def _of_words(answers: Sequence[Judged]) -> list[dict[str, object]]:
    if not answers:
        return []
    right = sum(answer.is_right for answer in answers)
    low, high = wilson_interval(right, len(answers))
    say(
        f"answers in words: {right} of {len(answers)} right, {right / len(answers):.1%} (95 %: {low:.1%} to {high:.1%})"
    )
    return [row("questions", len(answers), "1"), row("right", right, "1")]


def _of_boxes(answers: Sequence[Judged]) -> list[dict[str, object]]:
    if not answers:
        return []
    overlaps = [answer.overlap or 0.0 for answer in answers]
    mean, well_formed = sum(overlaps) / len(overlaps), sum(answer.is_box for answer in answers)
    above = sum(value >= 0.5 for value in overlaps)
    say(
        f"boxes: mean overlap {mean:.3f}, {above} of {len(answers)} at least 0.5; {well_formed} answers are boxes, "
        "and others count as 0"
    )
    return [
        row("boxes", len(answers), "1"),
        row("mean_overlap", mean, "1"),
        row("overlap_at_least_half", above, "1"),
        row("well_formed", well_formed, "1"),
    ]
