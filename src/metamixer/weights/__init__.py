"""Checkpoints: reading, writing, the authors' layouts, published and embedded weights."""
