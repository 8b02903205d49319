"""From the Internet to the MTA: listeners, the relayed dialogue, who the client is."""
