"""Reading a vision tower: what a selection method may look at. No vLLM here."""
