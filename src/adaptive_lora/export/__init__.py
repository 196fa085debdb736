"""Adapters as values: read from anywhere, checked, and written in the forms that tools read."""
