"""Embeddings, and what identifies images and weights by their content."""
