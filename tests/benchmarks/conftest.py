"""Nothing to collect in `systems`: its modules import what is installed only where it is compared with."""

collect_ignore = ["systems"]
