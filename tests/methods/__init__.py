"""Each method against a plain-loop oracle of its own, written from the paper."""
