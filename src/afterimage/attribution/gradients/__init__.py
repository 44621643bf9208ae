"""Projected per-image gradients of networks: layers, projections, readouts and noise."""
