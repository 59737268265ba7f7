"""What a run will need before it starts: memory per rank, seconds per step, GPU-hours. Pure, no torch (docs/planning.md)."""
