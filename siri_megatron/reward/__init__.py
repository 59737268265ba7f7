"""Rewards: verifiers in killable workers, the cap rule, answer scopes, advantages. Imports no torch."""
