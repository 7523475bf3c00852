"""How the checkpoints of this repository were made."""
