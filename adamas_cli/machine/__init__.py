"""What this machine is and has, told without torch."""
