"""The LRs of a run: what the first gradients say, the LRs until the decay, and the whole course."""
