"""The language model's two steps: it reads a sequence, and generates an answer from its action rows or its words.

It may import core and `sequence`. Images and prompts are made elsewhere; here they are embeddings.
"""
