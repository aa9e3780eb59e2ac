"""The loss of every optimizer step: overheard or handed in, kept, and gathered when it is needed."""
