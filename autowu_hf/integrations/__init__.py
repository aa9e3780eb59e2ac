"""Where accelerate and Trainer meet a schedule; they know ``runtime.scheduler.AdaptiveScheduler`` alone."""
