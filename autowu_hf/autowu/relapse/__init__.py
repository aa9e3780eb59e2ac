"""After the switch: whether what had been learned is lost again, and what is done then."""
