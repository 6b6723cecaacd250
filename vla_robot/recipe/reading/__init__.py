"""Finds recipes, reads them strictly from TOML, checks them and writes them back.

It may import core. The dataclasses beside this folder define the recipes.
"""
