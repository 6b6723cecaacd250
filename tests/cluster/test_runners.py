"""What every runner of tasks promises, its workers and its objects. A new one joins by one line in RUNNERS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_tasks

from vla_robot.cli.build import open_runner
from vla_robot.core.errors import DataError, LostError
from vla_robot.core.ports import TaskRunner
from vla_robot.core.ports.tasks import Resources

from ..contracts.kinds import class_names

SMALL = Resources(cpus=0.5, memory_mb=50)
PATIENCE_S = 300.0
"""For an answer that a busy computer may delay."""

RUNNERS: dict[str, str | None] = {
    "LocalRunner _LocalWorkers _LocalObject _LocalPlaced": None,
    "RayRunner _RayWorkers _RayObject _RayPlaced": "local",
}
"""Classes of a runner, of its workers, of its shared and of its placed objects -> the value of --cluster."""


@pytest.fixture(scope="module", params=RUNNERS)
def runner(request: pytest.FixtureRequest) -> Iterator[TaskRunner]:
    cluster = RUNNERS[request.param]
    if cluster is not None:
        pytest.importorskip("ray")
    with open_runner(cluster, 4) as opened:
        assert type(opened).__name__ == class_names(request.param)[0]
        yield opened


def test_every_job_has_one_result(runner: TaskRunner) -> None:
    with runner.workers(toy_tasks.counter, 2, SMALL) as workers:
        assert sorted(workers.run(toy_tasks.square, range(20))) == [k * k for k in range(20)]
        assert runner.peak_mb > 1


def test_workers_keep_their_states_between_lists_of_jobs(runner: TaskRunner) -> None:
    with runner.workers(toy_tasks.counter, 1, SMALL) as workers:
        first = list(workers.run(toy_tasks.process, [7, 8]))
        second = list(workers.run(toy_tasks.process, [9]))
    assert [(job, count) for job, _, count in first + second] == [(7, 1), (8, 2), (9, 3)]
    assert len({pid for _, pid, _ in first + second}) == 1


def test_an_error_of_a_task_arrives_as_it_was_raised(runner: TaskRunner) -> None:
    with (
        runner.workers(toy_tasks.counter, 2, SMALL) as workers,
        pytest.raises(DataError, match=r"^the third job is refused\.$"),
    ):
        list(workers.run(toy_tasks.refuse_two, range(4)))


def test_an_error_of_a_state_arrives_as_it_was_raised(runner: TaskRunner) -> None:
    with pytest.raises(DataError, match=r"^no state can be made here\.$"), contextlib.ExitStack() as stack:
        workers = stack.enter_context(runner.workers(toy_tasks.refusing, 1, SMALL))
        list(workers.run(toy_tasks.square, [1]))


def test_a_stopped_run_yields_nothing_more(runner: TaskRunner) -> None:
    with runner.workers(toy_tasks.counter, 1, SMALL) as workers:
        found: list[int] = []
        for result in workers.run(toy_tasks.square, range(9), should_stop=lambda: len(found) >= 2):
            found.append(result)
            if len(found) >= 2 and runner.is_here:
                break  # in this process, the task itself ends early
    assert found == [0, 1]


def test_all_workers_ask_one_shared_object(runner: TaskRunner) -> None:
    with (
        runner.workers(toy_tasks.counter, 2, SMALL) as workers,
        runner.share(toy_tasks.model, callers=2, needs=SMALL) as shared,
    ):
        assert sorted(workers.run(toy_tasks.Asking(shared), range(8))) == list(range(1000, 1008))
        assert shared.call(toy_tasks.calls) == 8
        with pytest.raises(DataError, match=r"^a negative question\.$"):
            list(workers.run(toy_tasks.Asking(shared), [-1]))


def test_a_placed_object_answers_until_it_is_lost(runner: TaskRunner) -> None:
    placed = runner.place(toy_tasks.model, SMALL)
    assert placed.call(PATIENCE_S, toy_tasks.ask, 1) == 1001
    with pytest.raises(DataError, match=r"^a negative question\.$"):
        placed.call(PATIENCE_S, toy_tasks.ask, -1)
    assert placed.call(PATIENCE_S, toy_tasks.calls) == 1 and placed.lost == ""
    placed.kill()
    with pytest.raises(LostError):
        placed.call(PATIENCE_S, toy_tasks.ask, 1)
    assert placed.lost
    placed.close()


def test_a_placed_object_that_does_not_answer_is_ended(runner: TaskRunner, tmp_path: Path) -> None:
    placed = runner.place(toy_tasks.model, SMALL)
    assert placed.call(PATIENCE_S, toy_tasks.ask, 1) == 1001
    with pytest.raises(LostError, match="no answer within"):
        placed.call(0.3, toy_tasks.wait_for, tmp_path / "gate")
    (tmp_path / "gate").touch()
    assert placed.lost


def test_what_keeps_a_placed_object_from_being_made_is_raised(runner: TaskRunner) -> None:
    placed = runner.place(toy_tasks.refusing, SMALL)
    with pytest.raises(DataError, match=r"^no state can be made here\.$"):
        placed.call(PATIENCE_S, len)
    placed.close()


def test_room_is_counted_by_cores_and_memory(runner: TaskRunner) -> None:
    assert runner.most_workers(SMALL) >= 1
    assert runner.most_workers(Resources(cpus=0.5, memory_mb=10**9)) <= 1
