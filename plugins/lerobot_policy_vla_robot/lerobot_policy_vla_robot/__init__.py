"""vla_robot's policies and worlds in lerobot's tools.

lerobot imports this package by its name when one of its tools starts. The import registers the policy type and the
environment type `vla_robot`; lerobot then finds the modules `modeling_` and `processor_` by the name of
`configuration_`. This package may import vla_robot and lerobot; vla_robot never imports it, except to export.
"""

from lerobot_policy_vla_robot.configuration_vla_robot import VlaRobotConfig
from lerobot_policy_vla_robot.environment import VlaRobotEnvConfig

__all__ = ["VlaRobotConfig", "VlaRobotEnvConfig"]
