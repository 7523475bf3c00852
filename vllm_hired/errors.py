"""The error of a setting, and what all settings begin with."""

PREFIX = "hired_"


class HiredConfigError(ValueError):
    """A `hired_*` setting that cannot be used.

    Attributes:
        setting: the key as the user writes it.
        value: what was given.
        allowed: what is allowed instead.
    """

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        super().__init__(setting, value, allowed)
        self.setting = setting
        self.value = value
        self.allowed = allowed

    def __str__(self) -> str:
        return f"{self.setting}={self.value!r} is not allowed: {self.allowed}"
