"""Weights on their way: Hugging Face names to Megatron shards and back, and from the learners into the engines."""
