"""The entry point, also as `python -m memscaler`. It imports nothing before Ctrl-C ends it without a word."""

import os

INTERRUPTED = 130  # what shells expect after Ctrl-C
_signal = __import__("_signal")  # what `signal` is made of, without the milliseconds that its own imports take


def main() -> None:
    """Run the command line of this process, and exit."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # not where it is ignored, as behind nohup
        _signal.signal(_signal.SIGINT, lambda *_: os._exit(INTERRUPTED))  # until commands can end in order
    from memscaler.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
