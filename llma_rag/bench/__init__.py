"""Measure drafting and decoding; JSON in, JSON out."""
