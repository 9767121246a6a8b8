"""Replaying segments: the only part of polverify that loads torch, and that executes the verifier's recipe."""
