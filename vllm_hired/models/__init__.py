"""One file an architecture, named as vLLM names it."""
