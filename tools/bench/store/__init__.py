"""What a store costs, against named rivals on the same training: python -m tools.bench.store."""
