"""Specialise small language models with very small adapters, and prove that they help."""
