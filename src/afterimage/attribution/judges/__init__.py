"""How well an attribution predicts what retraining shows."""
