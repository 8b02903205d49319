"""From the MTA's message to a verified delivery or an explained refusal."""
