"""How many response tokens a rollout may have, step by step: schedules, closed loop, controller, zero-signal guard."""
