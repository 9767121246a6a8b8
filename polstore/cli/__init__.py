"""The command line `polstore`."""
