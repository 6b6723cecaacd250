"""`vla data`: inspect, convert, check and measure datasets.

It may import every room. What a program could want without a command line belongs to the rooms below.
"""
