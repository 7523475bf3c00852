"""A small LLaVA-NeXT of our own: its data and its training."""
