"""Code that all vision-language models share: sequence of tokens, masks, positions, the reasoner and its decoding.

It may import core and recipe. A family, with its own configuration, perceive and align, is a room beside this one.
"""
