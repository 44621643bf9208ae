"""What an attacker, or a judge of quality, learns from generations."""
