"""What is measured once the scale is known, in later steps."""
