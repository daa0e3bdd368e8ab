"""What people run: the command line, one file a command. Everything that prints is in here."""
