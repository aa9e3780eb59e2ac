"""Where accelerate and Trainer meet a schedule; of schedulers they know only ``AdaptiveScheduler`` in ``runtime``."""
