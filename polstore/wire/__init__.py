"""Every byte that is hashed or signed: pure functions, no I/O, no numpy, no torch."""
