"""Snapshots as values, what of them is committed (quantisation), and the frames that store them; numpy, no torch."""
