"""The parts of `sce.embedder`: settings, checkpoints, fingerprints, batches."""
