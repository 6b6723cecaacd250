"""Datasets of other people and of ours: reading, standardising, mixing, converting and checking them.

It may import core and recipe. Driving a robot and training a policy belong to record and train.
"""
