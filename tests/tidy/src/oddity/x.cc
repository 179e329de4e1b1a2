// No floor.
