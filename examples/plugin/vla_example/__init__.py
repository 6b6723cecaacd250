"""What vla_robot finds through the entry points in pyproject.toml."""
