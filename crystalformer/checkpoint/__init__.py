"""Weights on disk: the published pickle layout, read without executing code, and the shipped model."""
