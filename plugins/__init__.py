"""The pretext tasks that ship with sslkit: one file per task, found through entry points like anybody else's."""
