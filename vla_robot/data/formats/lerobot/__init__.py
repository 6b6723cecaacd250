"""LeRobot datasets, versions 2.0 to 3.0: reading, and writing version 3.0.

It may import core and `data.formats`. No other format belongs here.
"""
