"""What a model reads, made from observations: frames, instructions, and the arm's state with its statistics.

It may import core and `reason`. No weights are here.
"""
