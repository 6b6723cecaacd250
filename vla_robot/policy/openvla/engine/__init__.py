"""How an answer is computed fast: decoding, compiled graphs, quantisation, threads, costs and the plain baseline.

It may import core and `policy.openvla.network` and `inputs`. Files and recipes are read elsewhere.
"""
