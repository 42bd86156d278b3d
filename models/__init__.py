"""Backbones: images (b, 3, h, w) in [-1, 1] to embeddings (b, embedding_size)."""

from models.registry import create_model, model_names

__all__ = ["create_model", "model_names"]
