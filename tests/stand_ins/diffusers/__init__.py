"""Stands in for diffusers, which eight packages come with: the names, enum and checks of its schedules (0.42)."""
