"""The objects that can be named: colour emoji that do not look alike."""

OBJECTS = {
    # Each name is one token of SmolLM2 when a space stands before it.
    **{"monkey": "🐒", "horse": "🐎", "cow": "🐄", "pig": "🐖", "elephant": "🐘"},
    **{"rabbit": "🐇", "chicken": "🐔", "penguin": "🐧", "duck": "🦆", "owl": "🦉"},
    **{"frog": "🐸", "crocodile": "🐊", "turtle": "🐢", "snake": "🐍", "whale": "🐳"},
    **{"fish": "🐟", "octopus": "🐙", "snail": "🐌", "butterfly": "🦋", "bee": "🐝"},
    **{"spider": "🕷", "crab": "🦀", "camel": "🐫", "cat": "🐱", "dog": "🐶"},
    **{"grapes": "🍇", "watermelon": "🍉", "banana": "🍌", "pineapple": "🍍"},
    **{"apple": "🍎", "strawberry": "🍓", "pizza": "🍕", "bread": "🍞", "corn": "🌽"},
    **{"mushroom": "🍄", "carrot": "🥕", "broccoli": "🥦", "avocado": "🥑"},
    **{"cake": "🍰", "egg": "🥚", "rocket": "🚀", "helicopter": "🚁", "train": "🚆"},
    **{"bus": "🚌", "tractor": "🚜", "bicycle": "🚲", "plane": "✈", "boat": "⛵"},
    **{"guitar": "🎸", "trumpet": "🎺", "drum": "🥁", "crown": "👑", "glasses": "👓"},
    **{"bomb": "💣", "camera": "📷", "television": "📺", "key": "🔑", "lock": "🔒"},
    **{"bell": "🔔", "hammer": "🔨", "scissors": "✂", "basketball": "🏀"},
    **{"football": "🏈", "balloon": "🎈", "umbrella": "☂", "candle": "🕯"},
    **{"anchor": "⚓", "book": "📕", "chair": "🪑", "house": "🏠", "tree": "🌳"},
    **{"cactus": "🌵", "sunflower": "🌻", "rose": "🌹", "hat": "🎩", "shoe": "👟"},
    **{"shirt": "👕", "ring": "💍", "gift": "🎁", "magnet": "🧲", "robot": "🤖"},
    **{"clock": "⏰", "pumpkin": "🎃", "skull": "💀", "heart": "❤", "star": "⭐"},
    **{"moon": "🌙", "fire": "🔥", "tent": "⛺", "tooth": "🦷", "castle": "🏰"},
}
NAMES = tuple(OBJECTS)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

PLURAL = ("grapes", "glasses", "scissors")


def with_article(name: str) -> str:
    """`a cat`, `an owl`, `scissors`."""
    if name in PLURAL:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
