"""The configuration file: what it says, and the frozen settings each package takes."""
