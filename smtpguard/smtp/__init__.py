"""The SMTP and LMTP protocol without I/O: octets to values and back (RFC 5321, 2033, 2920, 3207)."""
