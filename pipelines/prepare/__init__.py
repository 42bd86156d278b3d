"""Tools for data sets of one's own: ``python -m pipelines.prepare``."""
