"""How recipes are found, read strictly from TOML, checked and written back.

It may import core. What a recipe means is in the dataclasses beside this folder.
"""
