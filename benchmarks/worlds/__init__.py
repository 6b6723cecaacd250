"""`vla bench world`: a step of a benchmark's world, beside the benchmark's own.

`libero_peer.py` is a program for the environment `libero`, and imports nothing of ours; `compare.py` runs both.
"""
