"""The host: processes, files, locks, the journal, stages and the clock. Imports nothing above `errors` and `events`."""
