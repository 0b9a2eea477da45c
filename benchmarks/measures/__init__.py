"""How it is measured: sample quality, divergences, memory, perceptual distance."""
