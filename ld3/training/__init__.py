"""Ways to learn a schedule from a teacher."""
