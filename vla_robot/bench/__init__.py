"""Benchmarks: what `vla bench` measures, beside a baseline in the same run.

It may import every room; no room imports it but the verb `vla bench`. Nothing that a user runs in production belongs
here.
"""
