"""What is compared, a module each: its `Driver` is driven from a session's process; workers import some of them."""
