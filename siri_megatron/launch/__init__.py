"""Starting, watching and ending the processes of a run: plan (`spec`), refusals before anything starts (`preflight`),
the supervisor and the guards around its children, and the one verdict of a run, `result.json`. Imports no torch."""
