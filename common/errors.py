"""The error that commands show as one line, and what such lines are made of."""


class UserError(Exception):
    """Something the user can fix: the message says what is wrong and what to do.

    status: the command's exit status, 2 for a wrong command line or config, 1 for anything else.
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


def one_line(error: Exception) -> str:
    """The message of another library's error, without line breaks and at most 200 characters long;
    its class if it has no message.
    """
    return " ".join(str(error).split())[:200] or type(error).__name__


def listed(names: list[str], most: int = 10) -> str:
    """The names for a message, at most `most` of them."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
