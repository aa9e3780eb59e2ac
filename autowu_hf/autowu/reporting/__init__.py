"""A decision for its reader: the line in the log, the file, the picture."""
