"""The network of OpenVLA in three steps, perceive, align and reason, with its sizes and their bounds.

It may import core and `policy.vla`. Reading files (but for config.json) and choosing tokens belong elsewhere in
`policy.openvla`.
"""
