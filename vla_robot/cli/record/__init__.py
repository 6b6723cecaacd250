"""`vla record`: records demonstrations by an expert, a policy or a person.

It may import every room. Functions that a program could use without a command line belong to the other rooms.
"""
