"""Inference and training as a user would write them without this package, and the times of both.

`vla bench policy`, `vla bench finetune` and the tests compare the package with them. May import every room.
"""
