"""Hugging Face directories into megatron-core's distributed checkpoints and back, tensor by tensor, without a rank."""
