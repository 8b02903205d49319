"""What a host must show, and what follows from what it showed: pure judgement (RFC 7672, 8461)."""
