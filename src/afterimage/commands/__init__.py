"""Commands about a whole study."""
