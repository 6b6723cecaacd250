"""The world and the policy whose time and fate the tests decide."""

from ..loop.conftest import clock as clock
from ..loop.conftest import guard as guard
from ..loop.conftest import make_policy as make_policy
from ..loop.conftest import make_world as make_world
