"""The one sequence that a language model reads: its rows, and who attends to whom, and from where positions count.

It may import core. What a token means, an image, a word or an action, is not decided here.
"""
