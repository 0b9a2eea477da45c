"""What is compared: this pack, published methods, and standard schedules."""
