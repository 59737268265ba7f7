"""Runs as nemo-run experiments (the extra `launch`; docs/cluster.md). Imports neither torch, megatron nor vLLM."""
