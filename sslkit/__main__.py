"""`python -m sslkit` is `sslkit`."""

from sslkit.cli.app import main

if __name__ == "__main__":
    main()
