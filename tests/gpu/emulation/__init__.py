"""CUDA sources run on the CPU: the same text, compiled by the host's compiler over an emulated warp."""
