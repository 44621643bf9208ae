"""LoyalDiffusion's choice of skip groups and switch timesteps."""
