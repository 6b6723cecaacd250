"""`vla doctor`: what is installed, and whether a robot is ready.

It may import every room. What a program could want without a command line belongs to the rooms below.
"""
