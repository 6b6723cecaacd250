"""Whether the benchmarks' environments are installed here; the CI machine has no network to install them."""

from __future__ import annotations

import pytest

from vla_robot.world.environments.location import find_environment

ENVIRONMENT = find_environment("libero")
METAWORLD = find_environment("metaworld")

needs_libero = pytest.mark.skipif(
    not ENVIRONMENT.is_made, reason="the environment 'libero' is not installed: `vla install libero` makes it"
)
needs_metaworld = pytest.mark.skipif(
    not METAWORLD.is_made, reason="the environment 'metaworld' is not installed: `vla install metaworld` makes it"
)
