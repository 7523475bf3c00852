"""What touches vLLM: its front end and its workers."""
