"""What policies say in words, read and written: boxes.

It may import core. Tokenizers, models and pictures belong elsewhere.
"""
