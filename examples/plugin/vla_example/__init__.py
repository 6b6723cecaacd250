"""A policy, a world and a teleoperator that vla_robot finds through the entry points in pyproject.toml."""
