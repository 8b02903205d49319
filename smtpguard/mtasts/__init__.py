"""MTA-STS: parse, fetch, keep and refresh policies (RFC 8461)."""
