"""What a certificate chain shows and proves: PKIX, DANE, identities, contexts (RFC 5280, 6698, 9525)."""
