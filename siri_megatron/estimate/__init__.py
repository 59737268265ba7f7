"""What a run takes, before it is queued: memory of learners and engines. Pure, no torch."""
