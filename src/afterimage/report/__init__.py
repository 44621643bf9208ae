"""Tidy tables and pages made from finished results."""
