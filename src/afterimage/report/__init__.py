"""Tidy tables and pages rendered from finished results."""
