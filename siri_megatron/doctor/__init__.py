"""`siri doctor`: does this machine hold what a run needs? Works with the standard library alone."""
