"""`make demo`: a real, small LLaVA-NeXT at four budgets, on a CPU."""
