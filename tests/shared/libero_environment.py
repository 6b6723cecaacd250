"""Whether LIBERO's environment is installed here; the CI machine has no network to install it."""

from __future__ import annotations

import pytest

from vla_robot.world.environments.location import find_environment

ENVIRONMENT = find_environment("libero")

needs_libero = pytest.mark.skipif(
    not ENVIRONMENT.is_made, reason="the environment 'libero' is not installed: `vla install libero` makes it"
)
