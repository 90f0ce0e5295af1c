"""The command line: one module per group of commands. Anything heavy is imported by the command that needs it."""
