"""Tests of the watchdog: it holds on silence, stops on longer silence, latches, and gives reasons. No test sleeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, FakeClock
from vla_robot.core.errors import ContractError
from vla_robot.safety.watchdog import Verdict, Watchdog

TICK_NS = 20 * NS_PER_MS


class Robot:
    """A watchdog that is asked on every tick of 20 ms."""

    def __init__(self) -> None:
        self.clock = FakeClock(start_ns=1_000 * NS_PER_S)
        self.watchdog = Watchdog(self.clock, hold_after_s=0.5, stop_after_s=3.0, beat_after_s=0.5)

    def live(self, duration_s: float, *, actions: bool = True, beats: bool = True) -> list[Verdict]:
        """Return the verdicts of that time; `actions` and `beats` say what comes before each tick."""
        verdicts: list[Verdict] = []
        for _ in range(round(duration_s * NS_PER_S / TICK_NS)):
            self.clock.advance_ns(TICK_NS)
            if actions:
                self.watchdog.accepted()
            if beats:
                self.watchdog.beat()
            verdicts.append(self.watchdog.check())
        return verdicts


@pytest.fixture
def robot() -> Robot:
    robot = Robot()
    robot.watchdog.start()
    return robot


def modes(verdicts: list[Verdict]) -> list[str]:
    """The modes in order, without repetitions."""
    return [v.mode for k, v in enumerate(verdicts) if k == 0 or v.mode != verdicts[k - 1].mode]


def test_fresh_actions_and_heartbeats_run(robot: Robot) -> None:
    assert modes(robot.live(10)) == ["run"]


def test_a_robot_without_a_first_action_is_held_without_a_time_limit() -> None:
    verdicts = Robot().live(60, actions=False, beats=False)
    assert modes(verdicts) == ["hold"]
    assert verdicts[-1].reason == "it waits for the first action"


def test_silence_holds_and_then_stops_at_the_configured_times(robot: Robot) -> None:
    robot.live(1)
    silent = robot.live(4, actions=False)
    assert modes(silent) == ["run", "hold", "stopped"]
    assert [v.mode for v in silent].index("hold") == 24  # 25 ticks are 0.5 s
    assert [v.mode for v in silent].index("stopped") == 24 + 150
    assert silent[24].reason == "the last action came 0.5 s ago, allowed are 0.5 s"
    assert silent[-1].reason.startswith("silence: held for 3 s, as the last action came 3.5 s ago")


def test_actions_without_a_heartbeat_hold(robot: Robot) -> None:
    verdicts = robot.live(1, beats=False)
    assert modes(verdicts) == ["run", "hold"]
    assert "the last heartbeat came" in verdicts[-1].reason and "action" not in verdicts[-1].reason


def test_a_hold_is_over_by_itself(robot: Robot) -> None:
    assert robot.live(2, actions=False, beats=False)[-1].mode == "hold"
    assert modes(robot.live(1)) == ["run"]


def test_a_short_hold_does_not_count_towards_the_next_one(robot: Robot) -> None:
    for _ in range(5):
        assert modes(robot.live(2, actions=False)) == ["run", "hold"]
        robot.live(0.1)


def test_a_stop_is_not_over_by_itself_and_arming_it_waits_for_an_action(robot: Robot) -> None:
    robot.live(5, actions=False)
    assert modes(robot.live(5)) == ["stopped"]
    robot.watchdog.arm()
    waiting = robot.live(5, actions=False)
    assert modes(waiting) == ["hold"] and "first action after it was armed" in waiting[0].reason
    assert modes(robot.live(1)) == ["run"]


def test_arming_is_refused_without_a_heartbeat(robot: Robot) -> None:
    robot.live(5, actions=False, beats=False)
    with pytest.raises(ContractError, match=r"stays stopped: the last heartbeat came .* ago.* Connect the controller"):
        robot.watchdog.arm()


@pytest.mark.parametrize("cause", ["key", "signal", "network"])
def test_an_emergency_stop_is_latched_from_the_next_tick_on(robot: Robot, cause: str) -> None:
    robot.watchdog.trip(cause)
    verdicts = robot.live(1)
    assert modes(verdicts) == ["stopped"]
    assert verdicts[0].reason == f"emergency stop by {cause}; arm the robot to go on"


def test_arming_is_refused_while_any_cause_is_present(robot: Robot) -> None:
    robot.watchdog.trip("key")
    robot.watchdog.trip("network")
    robot.live(1)
    with pytest.raises(ContractError, match=r"key, network still asks for it\. Release that first, then arm"):
        robot.watchdog.arm()
    robot.watchdog.release("key")
    with pytest.raises(ContractError, match="stays stopped: network still"):
        robot.watchdog.arm()
    robot.watchdog.release("network")
    assert modes(robot.live(1)) == ["stopped"]  # released is not armed
    robot.watchdog.arm()
    assert robot.live(1)[-1].mode == "run"


def test_a_new_episode_does_not_arm_a_stopped_robot(robot: Robot) -> None:
    robot.watchdog.trip("key")
    robot.watchdog.start()
    assert modes(robot.live(1)) == ["stopped"]


def test_arming_a_robot_that_runs_changes_nothing(robot: Robot) -> None:
    robot.live(1)
    robot.watchdog.arm()
    assert modes(robot.live(1)) == ["run"]


@pytest.mark.parametrize(
    ("jump_s", "words"), [(-5.0, "the clock went back by 4.98 s"), (3600.0, "the clock jumped by 3.6e+03 s")]
)
def test_a_clock_that_jumps_holds_until_all_is_fresh_again(robot: Robot, jump_s: float, words: str) -> None:
    robot.live(1)
    robot.clock.advance_ns(round(jump_s * NS_PER_S))
    after = robot.live(0.1, actions=False, beats=False)
    assert modes(after) == ["hold"] and words in after[0].reason
    assert modes(robot.live(0.1, beats=False)) == ["hold"]
    assert modes(robot.live(1)) == ["run"]


def test_a_jump_that_an_action_notices_first_holds_too(robot: Robot) -> None:
    robot.live(1)
    robot.clock.advance_ns(-NS_PER_S)
    robot.watchdog.accepted()
    assert robot.watchdog.check().reason == "no heartbeat came"


def test_silence_after_a_jump_stops(robot: Robot) -> None:
    robot.live(1)
    robot.clock.advance_ns(-NS_PER_S)
    assert modes(robot.live(4, actions=False, beats=False)) == ["hold", "stopped"]


@pytest.mark.parametrize("times", [{"hold_after_s": 0.0}, {"stop_after_s": -1.0}, {"beat_after_s": float("nan")}])
def test_times_that_are_not_above_0_are_refused(times: dict[str, float]) -> None:
    with pytest.raises(ContractError, match="must be above 0"):
        Watchdog(FakeClock(), **times)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["accepted", "beat", "check", "trip", "release", "arm", "start"]),
            st.integers(-NS_PER_S, 2 * NS_PER_S),
        ),
        max_size=60,
    )
)
def test_after_any_events_a_stop_stays_until_it_is_armed(events: list[tuple[str, int]]) -> None:
    clock = FakeClock(10 * NS_PER_S)
    watchdog = Watchdog(clock)
    tripped = latched = False
    for name, passed_ns in events:
        clock.advance_ns(passed_ns)
        if name == "arm":
            try:
                watchdog.arm()
                assert not tripped
                latched = False
            except ContractError:
                pass
        elif name in ("trip", "release"):
            getattr(watchdog, name)("key")
            tripped = name == "trip"
            latched = latched or tripped
        else:
            getattr(watchdog, name)()
        verdict = watchdog.check()
        assert (verdict.reason == "") == (verdict.mode == "run")
        latched = latched or verdict.mode == "stopped"
        assert (verdict.mode == "stopped") == latched
