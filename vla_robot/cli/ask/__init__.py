"""`vla ask`: questions to a policy about pictures, answered in words and boxes.

It may import every room. Functions that a program could use without a command line belong to the other rooms.
"""
