"""The error that a command shows as one line."""


class UserError(Exception):
    """Something that the person at the keyboard can put right: the message says what is wrong and what to do.

    status: the command's exit status, 2 for a wrong command line or config, 1 for anything else.
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status
