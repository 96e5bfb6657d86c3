"""Acceptance rules: one pure function `accept` per file; `levels.py` says which one decides when.

A rule sees the drafted ids, the distributions of both sides and its noise, and returns how many
drafts of each row stand and which token follows them. It knows neither model nor cache.
"""
