"""Measuring ladders fairly: who runs against whom, what a figure of record is, and what bounds it."""
