"""What any schedule needs of a run: its losses, its processes, its parameter groups."""
