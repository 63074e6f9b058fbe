"""Everything that touches torch and transformers: loading, caches and forward passes."""
