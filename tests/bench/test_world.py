"""`vla bench world`: ours beside LIBERO's own environment; where that is installed, the frames are equal to the bit."""

from __future__ import annotations

import pytest
from libero_environment import needs_libero

from benchmarks.worlds.compare import (
    COARSE,
    FAST,
    LEFT_OUT,
    REFERENCE,
    THEIRS,
    Measured,
    Turn,
    WorldArgs,
    main,
    measure,
    rows,
)
from vla_robot.core.errors import RecipeError


def test_a_row_compares_the_median_turn_with_the_benchmarks_own() -> None:
    theirs = [Turn(0.2, 0.1, "a"), Turn(0.3, 0.1, "b"), Turn(9.0, 0.1, "c")]
    ours = [Turn(0.2, 0.1, "a"), Turn(0.27, 0.1, "b"), Turn(0.3, 0.1, "x")]
    found = Measured(
        {
            THEIRS: theirs,
            REFERENCE: ours,
            FAST: [Turn(0.1, 0.05, "f")] * 3,
            COARSE: [Turn(0.07, 0.05, "c")] * 3,
            LEFT_OUT: [Turn(0.05, 0.05, "")] * 3,
        }
    )
    first, *_, last = rows(found)
    assert first == {
        "name": f"cpu_s/{REFERENCE}",
        "value": 0.27,
        "unit": "s",
        "baseline": 0.3,
        "ratio": pytest.approx(0.9),
    }
    assert (last["name"], last["value"], last["baseline"]) == ("turns_with_equal_frames", 2, 3)


@pytest.mark.parametrize(
    ("args", "says"),
    [({"rounds": 0}, "--rounds 0: 1 to 100"), ({"state": 50}, "--state 50: 0 to 49")],
)
def test_a_number_outside_its_range_is_refused(args: dict[str, int], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        WorldArgs(**args)  # type: ignore[arg-type]


def test_a_world_of_another_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match="it is no task of LIBERO"):
        main(WorldArgs(env="lift"))


@needs_libero
@pytest.mark.sim
@pytest.mark.slow
def test_frames_of_reference_quality_are_the_benchmarks_own() -> None:
    found = measure(WorldArgs(env="libero_spatial/5", state=3, rounds=2, steps=1))
    assert found.equal_frames == 2
    assert {ours.frames for ours in found.turns[FAST]}.isdisjoint(theirs.frames for theirs in found.turns[THEIRS])
    assert all(turn.wall_s > 0 for turns in found.turns.values() for turn in turns)
