"""`sslkit export`: files for other programs, each verified by reading it back without sslkit."""
