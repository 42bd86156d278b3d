"""Margins, a file a paper."""
