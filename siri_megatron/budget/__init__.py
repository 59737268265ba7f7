"""How many response tokens a rollout may have, step by step: schedules, the phase controller, the zero-signal guard."""
