"""Timings, side by side with what they are measured against. Run by hand; never part of a test."""
