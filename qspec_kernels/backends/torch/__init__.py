"""Plain PyTorch in the working dtype of the input: the path of devices that have no kernels, and of float64.

Rows of the results do not depend on each other's company: matrix products are of one fixed shape, sums run
over fixed blocks, and everything else is elementwise.
"""
