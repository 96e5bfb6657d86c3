"""GPU kernels in Triton, for NVIDIA devices from sm_80 on; one op per file.

Beside its launcher a file offers `variants(arch)`: what it would compile for that architecture on shapes of
real models (see `_variants`). So that rows never depend on each other's company, the block along K, the
instruction, the number of splits and the order of sums follow from N, K, the format and the architecture
alone, and from the phase where an op has a file for prefills; the number of rows chooses how many of them
share a tile.
"""
