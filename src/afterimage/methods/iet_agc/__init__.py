"""Iterative ensemble training with anti-gradient control (Liu et al., ECCV 2024)."""
