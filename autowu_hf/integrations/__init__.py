"""Where accelerate and Trainer meet a schedule; they know no scheduler class but ``runtime.scheduler.AdaptiveScheduler``."""
