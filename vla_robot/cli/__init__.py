"""The `vla` command: one file or folder a verb; `build` is the one place that connects all rooms.

It may import every room. What a program could want without a command line belongs to the rooms below.
"""
