"""Look-ups with the DNSSEC verdict kept: records, cache, resolver, MX hosts, TLSA (RFC 1035, 4035, 6698)."""
