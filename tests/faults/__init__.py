"""What breaks, broken on purpose: processes killed, servers killed and frozen, messages forged."""
