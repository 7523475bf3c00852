"""How the checkpoint of this repository was made."""
