"""Figures of a study: one theme, vector files that come out the same every time."""
