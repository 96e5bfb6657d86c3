"""Decode rounds as CUDA graphs: one round is one launch, and the host only reads what it committed."""
