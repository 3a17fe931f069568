"""The subcommands of `igw`. Each file holds `HELP`, `add_arguments(parser)` and `main(args) -> exit status`."""
