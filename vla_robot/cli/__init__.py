"""The `vla` command: one file or folder per verb; `build` connects all rooms.

It may import every room. Functions that a program could use without a command line belong to the other rooms.
"""
