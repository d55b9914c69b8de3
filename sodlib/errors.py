"""The one exception that a person sees as a sentence, without a traceback."""


class SodlibError(Exception):
    """Bad input: one sentence that names the file or value and says what to do."""
