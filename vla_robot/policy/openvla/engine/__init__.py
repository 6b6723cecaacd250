"""Fast inference: decoding, compiled graphs, quantisation, threads and costs.

It may import core and `policy.openvla.network` and `inputs`. Files and recipes are read elsewhere.
"""
