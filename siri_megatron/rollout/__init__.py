"""Rollouts: engines, the collector that drives them, and what they say to each other."""
