"""Direct Preference Optimization as a distributed system on Ray, DeepSpeed and vLLM."""

__version__ = "0.1.0"
