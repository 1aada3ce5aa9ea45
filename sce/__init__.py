"""Soft Contextualized Encoder: embed a corpus once, classify it with any label set."""
