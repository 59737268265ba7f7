"""Which rollouts go into which micro-batch of which rank, at every cap: planned before anything is computed."""
