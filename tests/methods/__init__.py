"""Methods of papers against oracles in plain loops, written from the papers."""
