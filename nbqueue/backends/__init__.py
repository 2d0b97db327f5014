"""Where records, outputs, groups and adverts are kept: one file per technology."""
