"""`vla data`: inspect, convert, check and measure datasets.

It may import every room. Functions that a program could use without a command line belong to the other rooms.
"""
