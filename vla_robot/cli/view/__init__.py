"""`vla view`: a bridge in a browser or in Rerun.

It may import every room. What a program could want without a command line belongs to the rooms below.
"""
