"""Names and numbers of the field's benchmarks that recipes refer to: suites, tasks, limits of an episode.

It imports nothing. Their packages are not needed here; the worlds that import them belong to `world.sim`.
"""
