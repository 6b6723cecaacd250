"""`vla view`: shows a bridge in a browser or in Rerun.

It may import every room. Functions that a program could use without a command line belong to the other rooms.
"""
