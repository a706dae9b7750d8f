"""What the lab says to a person whose settings, files or data are at fault."""


class LabError(ValueError):
    """A mistake that the person at the keyboard can mend; the message is one line that says what, where and how."""
