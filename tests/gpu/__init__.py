"""Tests of GPU kernels that need no GPU: compiled for every architecture, and interpreted on the CPU."""
