"""Fast inference: decoding, compiled graphs, quantisation, threads, costs and the baseline.

It may import core and `policy.openvla.network` and `inputs`; `measure` alone also imports `policy.openvla.policy`.
Files and recipes are read elsewhere.
"""
