"""Learning from real steps what the physics left open."""
