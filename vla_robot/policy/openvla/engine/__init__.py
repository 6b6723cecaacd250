"""OpenVLA's own forms of inference: matrices of fewer bits, and chunks of OpenVLA-OFT in recorded blocks.

It may import core, `policy.vla`, and `policy.openvla.network` and `inputs`. Files and recipes are read elsewhere.
"""
