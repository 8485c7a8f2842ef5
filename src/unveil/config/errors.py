"""The one error that a person is meant to read."""


class UnveilError(Exception):
    """A mistake that the person at the keyboard can mend.

    Its text is the whole message: what is wrong, where, and what to do next. The command line prints it as one
    sentence and exits with status 1; everything else that is raised is a defect and keeps its traceback.
    """
