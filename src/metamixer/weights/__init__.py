"""Checkpoints: reading, writing, the authors' layouts, published and embedded weights."""

from metamixer.weights.checkpoint import Metadata, read_metadata, save_checkpoint
from metamixer.weights.tags import list_weights

__all__ = ["Metadata", "list_weights", "read_metadata", "save_checkpoint"]
