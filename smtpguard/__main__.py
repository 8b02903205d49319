"""`python -m smtpguard`, and what the `smtpguard` command starts."""

import signal
import sys


def main() -> None:
    """The command line.  An interrupt while its modules are loaded ends the process at once, as SIGINT does by nature:
    a KeyboardInterrupt inside an import would print a traceback or be swallowed by foreign code."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored: nohup
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:2] == ["health"]:  # asked every few seconds, so it does without what the other commands load
        from smtpguard.health import health

        health(sys.argv[2:], prog_name="smtpguard health")
    from smtpguard.cli import main as command_line

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command_line()


if __name__ == "__main__":
    main()
