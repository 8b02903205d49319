"""The admin address: metrics, health, decisions."""
