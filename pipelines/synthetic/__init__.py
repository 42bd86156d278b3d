"""Procedural faces, a data set without a download: ``python -m pipelines.synthetic``."""
