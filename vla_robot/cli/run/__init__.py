"""`vla run`: runs closed-loop episodes in a simulation or on a robot.

It may import every room. Functions that a program could use without a command line belong to the other rooms.
"""
