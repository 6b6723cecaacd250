"""`vla run`: closed-loop episodes in a simulation or on a robot.

It may import every room. What a program could want without a command line belongs to the rooms below.
"""
