"""The vLLM side: what runs inside of engine processes."""
