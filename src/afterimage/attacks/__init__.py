"""What an attacker, or a quality metric, learns from generations."""
