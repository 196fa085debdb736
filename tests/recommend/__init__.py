"""The room of recommendations."""
