"""What vLLM gives."""
