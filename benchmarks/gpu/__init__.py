"""What a GPU does with the models: counted on a machine without one (`fake_cuda`, `counts`), measured on one (`check`).

It may import every room. No weights are read from a network.
"""
