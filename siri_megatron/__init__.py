"""siri-megatron: Megatron-scale reinforcement learning with a moving response budget (SIRI, arXiv 2509.25176).

This package imports nothing heavy: `import siri_megatron` and `siri --help` must stay under a second.
"""

__version__ = "0.1.0"
