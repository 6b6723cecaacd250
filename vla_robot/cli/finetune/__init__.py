"""`vla finetune`: training.

It may import every room. What a program could want without a command line belongs to the rooms below.
"""
