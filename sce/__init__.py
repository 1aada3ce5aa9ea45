"""Soft Contextualized Encoder: embed a corpus once, classify it with any label set."""

__version__ = "0.1.0"
