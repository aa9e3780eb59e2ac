"""What is measured: the scale in the first optimizer steps, and what later ones say of it."""
