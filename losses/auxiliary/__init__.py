"""Losses that recipes add to the margin's."""
