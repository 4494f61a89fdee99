"""The host: processes, files, locks, the journal and the clock. Imports nothing above `errors` and `events`."""
