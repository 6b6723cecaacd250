"""Families whose model is one of transformers' vision-language models, with action tokens added.

Here is what they share: the folder, the layout of the sequence, the prompt and the model's two ends. Each family is a
room of its own beside this one, and adds its perceive, its align and its sizes. It may import core, recipe and
`policy/vla`; no name of a hub is ever resolved here.
"""
