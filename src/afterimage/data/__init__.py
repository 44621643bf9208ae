"""The data phase: sources, splits, planted duplicates and deduplication."""
