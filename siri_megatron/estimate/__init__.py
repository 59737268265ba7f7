"""What a run takes, before it is queued: memory, seconds, GPU-hours (docs/planning.md). Pure, no torch.

    activations, parameters, memory, engine   bytes      gpus, work, exchange, rates   seconds a unit of work
    generation, training, step, run           seconds    fit, calibration              rates out of a real run
    lengths, setup, room, search, render      what it is made for, what fits, what else would, and how it is said
"""
