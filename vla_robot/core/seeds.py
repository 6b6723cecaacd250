"""Range of seeds: an episode's seed is written to logs and sent to other processes as 64 bits with a sign."""

from __future__ import annotations

from vla_robot.core.errors import ContractError

MAX_SEED = 2**63 - 1


def seed_problem(first: int, count: int = 1) -> str:
    """Return why `count` episodes cannot have the seeds from `first` on; empty if they can.

    >>> seed_problem(-1)
    'seed is -1; it must be 0 or more'
    >>> seed_problem(2**63 - 2, count=3)
    'seed is 9223372036854775806; the last one, 9223372036854775808, must be at most 9223372036854775807'
    """
    last = first + count - 1
    if first < 0:
        return f"seed is {first}; it must be 0 or more"
    return f"seed is {first}; the last one, {last}, must be at most {MAX_SEED}" if last > MAX_SEED else ""


def require_seed(seed: int, largest: int | None = MAX_SEED) -> int:
    """Return the seed as Python's integer; `largest` is None for a world in this process, which takes any seed.

    Raises:
        ContractError: the seed is out of range; the arm did not move.
    """
    if seed < 0 or (largest is not None and seed > largest):
        allowed = "0 or more" if largest is None else f"0 to {largest}"
        raise ContractError(f"seed {seed} is outside {allowed}. Nothing moved.")
    return int(seed)
