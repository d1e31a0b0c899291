"""Learning rate by step: warm-up, then cosine or warmup-stable-decay. Pure functions."""

from __future__ import annotations

import math

from phi3mobile.training.config import Schedule


def lr_factor(schedule: Schedule, step: int) -> float:
    """What the configured lr is multiplied by in step 0, 1, ...; above 0 in the first step, `floor` after the last."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    if schedule.kind == "wsd":
        decay = max(1, round(schedule.decay * schedule.steps))
        left = schedule.steps - step
        return 1.0 if left >= decay else schedule.floor + (1 - schedule.floor) * max(left, 0) / decay
    done = min(1.0, (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup))
    return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * done))
