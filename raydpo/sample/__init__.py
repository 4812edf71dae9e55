"""Sampling with vLLM. The only room that imports it; it samples and never scores the reference."""
