"""Projected gradients of networks: layers, projections, readouts and noise."""
