"""Action heads: chunks as numbers, from what the language model has read, and what they share.

It may import core, recipe and the other folders of `policy/vla`; no family. The port is `core.ports.ActionHead`.
"""
