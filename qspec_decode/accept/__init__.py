"""Acceptance rules: one pure function `accept` per file, found by the file's name.

A rule sees the drafted ids, the distributions of both sides and its noise, and returns how many
drafts of each row stand and which token follows them. It knows neither model nor cache.
"""
