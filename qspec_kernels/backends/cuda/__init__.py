"""GPU kernels in CUDA C++: a launcher (.py) beside its source (.cu), compiled on first use for the GPU's own
architecture and kept in the user's cache.

Sources include nothing: the parts that an op is made of (.cuh) are put before it as text.
"""
