"""What is measured in the first optimizer steps: the scale."""
