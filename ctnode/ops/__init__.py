"""What every room uses and what knows nobody: logs, role life cycle, health, systemd."""
