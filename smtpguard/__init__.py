"""A TLS-enforcing SMTP proxy for the MTA you already have (RFC 3207, 7672, 8461)."""

__version__ = "0.1.0"
