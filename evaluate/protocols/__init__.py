"""Protocols as functions of arrays, and the lists that they read."""
