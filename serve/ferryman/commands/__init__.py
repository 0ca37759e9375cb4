"""What the subcommands do; one file a command."""
