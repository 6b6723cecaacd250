"""Recipes of trainings beside `vla finetune`, whose recipe is in `recipe/finetune.py`.

It may import core and recipe. No code of a training belongs here.
"""
