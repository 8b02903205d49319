"""The miniature Internet of `smtpguard demo` and tests; imports nothing of smtpguard, so no bug is shared."""
