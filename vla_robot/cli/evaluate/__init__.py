"""`vla eval`: measures success rates, with intervals.

It may import every room. Functions that a program could use without a command line belong to the other rooms.
"""
