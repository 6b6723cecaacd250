"""Fast inference: decoding, compiled graphs, quantisation, threads and costs.

It may import core, `policy.vla`, and `policy.openvla.network` and `inputs`. Files and recipes are read elsewhere.
"""
