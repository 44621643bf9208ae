"""Distances, neighbours, feature spaces, quality and intervals."""
