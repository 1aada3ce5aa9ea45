"""The parts of `sce.embedding.embedder`: settings, checkpoints, fingerprints, batches."""
