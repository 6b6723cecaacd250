"""`vla doctor`: checks what is installed, and whether a robot is ready.

It may import every room. Functions that a program could use without a command line belong to the other rooms.
"""
