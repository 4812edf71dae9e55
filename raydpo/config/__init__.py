"""The run file: its schema, how it is read, and the error that a user is meant to read. Imports nothing heavy."""
