"""What survives a run: commits that it resumes from, and plain Hugging Face exports."""
