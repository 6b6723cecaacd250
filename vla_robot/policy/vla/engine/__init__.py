"""Other forms of one inference: compiled graphs, and matrices of fewer bits. It may import core and `policy.vla`."""
