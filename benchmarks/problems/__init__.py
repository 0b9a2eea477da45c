"""What is measured: models whose solution is known, and the demo model."""
