"""Benchmarks of `vla bench`, each beside a baseline in the same run.

They are no part of the package: they run from a clone of the repository, may import every room, and no room imports
them. Nothing that a user runs in production belongs here.
"""
