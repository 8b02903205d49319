"""`python -m smtpguard`."""

from smtpguard.cli import main

main()
