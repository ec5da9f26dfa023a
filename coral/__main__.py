"""``python -m coral`` is the ``coral`` command."""

from coral.cli import main

if __name__ == "__main__":
    main()
