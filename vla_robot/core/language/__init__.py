"""What policies are told and say in words, read and written: places of an object's words, boxes.

It may import core. Tokenizers, models and pictures belong elsewhere.
"""
