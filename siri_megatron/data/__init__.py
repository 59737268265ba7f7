"""Data: prompts, the one text codec, the generated task, the resumable sampler. Imports no torch."""
