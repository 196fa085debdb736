"""Verdicts on results made elsewhere, as a table, a figure and a page."""
