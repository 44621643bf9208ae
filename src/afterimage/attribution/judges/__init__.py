"""Evaluation of attribution: by retraining, by known copies, and by what was forgotten."""
